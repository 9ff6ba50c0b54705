"""Plans are ordered data: what is saved is loaded to the bit, what is malformed is refused."""

import contextlib
import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import FormatError, NotReplayableError, OptionError
from workbench.core.interventions import Intervention
from workbench.core.plan import Plan, as_plan, from_data, to_data

D = 24
PARTS = (
    Intervention("blocks.0.attn.hook_z", wb.ops.zero(), heads=[1], positions=-1, label="ü <b>"),
    Intervention("blocks.*.hook_mlp_out", wb.ops.scale(0.5), rows=[0], optional=True),
    Intervention(
        ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"],
        wb.ops.add(tiny.normal(D, seed=1)),
        strength=0.1,
        unit="gap",
        unit_size=3.7,
        positions=slice(1, None),
    ),
    Intervention(
        "blocks.1.hook_resid_mid", wb.ops.set(tiny.normal(5, D, seed=2)), positions=[0, 4]
    ),
    Intervention("blocks.2.hook_attn_out", wb.ops.mean(tiny.normal(D, seed=3))),
    Intervention("blocks.2.mlp.hook_post", wb.ops.scale(2.0), neurons=[3, 4], positions="prompt"),
    Intervention("blocks.0.attn.hook_pattern", wb.ops.zero(), keys=[0, 2]),
    Intervention(
        "blocks.2.hook_resid_post",
        wb.ops.project_out(tiny.normal(3, D, seed=4), center=tiny.normal(D, seed=5)),
        positions="predicting",
    ),
)
PLAN = Plan(PARTS)
JSON = to_data(PLAN)[0]
TENSORS = to_data(PLAN)[1]


def plain(data: object) -> Any:
    """Data as JSON has it."""
    return json.loads(json.dumps(data))


def digest(folder: Path) -> str:
    """Of both files of a plan."""
    files = (folder / "plan.json", folder / "plan.safetensors")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# --- what a plan is -----------------------------------------------------------------------------


def test_a_plan_is_an_ordered_tuple() -> None:
    assert len(PLAN) == len(PARTS)
    assert tuple(PLAN) == PARTS
    assert PLAN[2] is PARTS[2]
    assert tuple(Plan(PARTS[:2]) + Plan(PARTS[2:])) == PARTS


def test_whatever_runs_takes_a_plan_or_interventions() -> None:
    assert as_plan(PLAN) is PLAN
    assert tuple(as_plan(iter(PARTS))) == PARTS
    assert len(as_plan(())) == 0
    with (
        tiny.unchecked(),
        pytest.raises(OptionError, match=r"plan must be a Plan or a list: plan=\[intervention\]"),
    ):
        as_plan(PARTS[0])  # pyright: ignore[reportArgumentType]
    with tiny.unchecked(), pytest.raises(OptionError, match="made of Interventions, got 'str'"):
        as_plan(["zero"])  # pyright: ignore[reportArgumentType]


# --- to files and back --------------------------------------------------------------------------


def test_a_saved_plan_is_loaded_as_it_was(tmp_path: Path) -> None:
    assert PLAN.save(tmp_path / "a") == tmp_path / "a"
    again = Plan.load(tmp_path / "a")
    for one, other in zip(PLAN, again, strict=True):
        assert str(one) == str(other)
        assert {k: v for k, v in vars(one).items() if k != "operator"} == {
            k: v for k, v in vars(other).items() if k != "operator"
        }
        for name, tensor in one.operator.tensors().items():
            assert tiny.same_bytes(other.operator.tensors()[name], tensor)


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "a")
    Plan.load(tmp_path / "a").save(tmp_path / "b")
    Plan.load(tmp_path / "b" / "plan.json").save(tmp_path / "c")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_loaded_plan_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    model = tiny.model(kind)
    PLAN.save(tmp_path)
    one = wb.run(model, "hello", plan=PLAN)
    other = wb.run(model, "hello", plan=Plan.load(tmp_path))
    assert tiny.same_bytes(one.logits, other.logits)
    assert one.receipts == other.receipts


def test_an_empty_plan_can_be_saved(tmp_path: Path) -> None:
    assert len(Plan.load(Plan().save(tmp_path))) == 0


def test_a_bare_function_cannot_be_saved_and_leaves_no_file(tmp_path: Path) -> None:
    plan = Plan((*PARTS, Intervention("hook_embed", torch.sin)))
    with pytest.raises(NotReplayableError, match="A bare function cannot be saved"):
        plan.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_json_is_readable() -> None:
    assert JSON["format"] == "workbench.plan"
    assert JSON["version"] == 1
    assert plain(JSON["interventions"][0]) == {
        "sites": ["blocks.0.attn.hook_z"],
        "operator": "zero",
        "scalars": {},
        "tensors": [],
        "positions": {"kind": "positions", "indices": [-1]},
        "heads": [1],
        "rows": None,
        "neurons": None,
        "keys": None,
        "strength": 1.0,
        "unit": "raw",
        "unit_size": 1.0,
        "schedule": None,
        "gate": None,
        "optional": False,
        "label": "ü <b>",
    }


# --- malformed and hostile ----------------------------------------------------------------------


def test_missing_and_truncated_files_are_format_errors(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        Plan.load(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="does not exist"):
        Plan.load(tmp_path)
    PLAN.save(tmp_path)
    (tmp_path / "plan.safetensors").unlink()
    with pytest.raises(FormatError, match=r"plan\[2\]: the tensors \['operand'\] are not in"):
        Plan.load(tmp_path)
    PLAN.save(tmp_path)
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(FormatError, match="cannot be read"):
        Plan.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_tensors_are_a_format_error(share: float, tmp_path: Path) -> None:
    PLAN.save(tmp_path)
    file = tmp_path / "plan.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FormatError, match=r"plan\.safetensors cannot be read: .* Save the plan"):
        Plan.load(tmp_path)


def test_tensors_that_are_a_folder_are_a_format_error(tmp_path: Path) -> None:
    PLAN.save(tmp_path)
    (tmp_path / "plan.safetensors").unlink()
    (tmp_path / "plan.safetensors").mkdir()
    with pytest.raises(FormatError, match="cannot be read"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '"plan"', "[" * 100_000, '{"version": ' + "9" * 5000 + "}", "NaN"],
    ids=lambda text: text[:12],
)
def test_what_is_no_json_or_no_plan_is_a_format_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(FormatError):
        Plan.load(tmp_path)


@pytest.mark.parametrize("version", [0, 2, -1, 10**30])
def test_another_version_is_named(version: int) -> None:
    with pytest.raises(FormatError, match=f"has version {version}; this workbench reads 1"):
        from_data({**JSON, "version": version}, TENSORS)


def broken(
    index: int, changes: Mapping[str, object], stored: Mapping[str, Tensor] = TENSORS
) -> FormatError:
    """The error that one changed entry makes."""
    data = plain(JSON)
    data["interventions"][index].update(changes)
    with pytest.raises(FormatError) as caught:
        from_data(data, stored)
    return caught.value


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": "blocks.0.attn.hook_z"},
        {"sites": [7]},
        {"sites": {"blocks.0.attn.hook_z": 1}},
        {"operator": ["zero"]},
        {"scalars": []},
        {"scalars": {"factor": "2"}},
        {"scalars": {"factor": float("nan")}},
        {"tensors": "operand"},
        {"tensors": [1]},
        {"heads": "12"},
        {"heads": [1.5]},
        {"heads": [True]},
        {"heads": 1},
        {"rows": {"0": 1}},
        {"neurons": [None]},
        {"keys": "all"},
        {"strength": "1"},
        {"strength": None},
        {"strength": True},
        {"strength": float("inf")},
        {"strength": 10**400},
        {"unit": 3},
        {"unit_size": [1]},
        {"optional": "false"},
        {"optional": 0},
        {"label": None},
    ],
    ids=str,
)
def test_nothing_is_converted(changes: dict[str, object]) -> None:
    key = next(iter(changes))
    assert f"plan[0] is malformed: {key} = " in str(broken(0, changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ["blocks.0.attn.hook_y"]}, "No site named 'blocks.0.attn.hook_y'"),
        ({"sites": ["blocks." + "9" * 5000 + ".attn.hook_z"]}, "No site named"),
        ({"sites": []}, "at least one site"),
        ({"operator": "__import__"}, "No operator is called '__import__'"),
        ({"operator": "function"}, "No operator is called 'function'"),
        ({"operator": "add"}, "operator 'add' lacks 'operand'"),
        ({"operator": "scale"}, "operator 'scale' lacks 'factor'"),
        ({"positions": {"kind": "positions", "indices": [2**70]}}, "indices between"),
        ({"positions": {"kind": "positions", "indices": []}}, "positions is empty"),
        ({"positions": "all"}, "No scope is written as"),
        ({"heads": []}, "heads is empty"),
        ({"heads": [-1]}, "from 0 up"),
        ({"strength": 1e300, "unit_size": 1e300}, "must be a finite number, got inf"),
        ({"operator": "zero", "scalars": {"factor": 2}}, "operator 'zero' has no 'factor'"),
        ({"tensors": ["elsewhere"]}, "the tensors ['elsewhere'] are not in plan.safetensors"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_makes_no_intervention_is_a_format_error(
    changes: dict[str, object], message: str
) -> None:
    error = str(broken(0, changes))
    assert error.startswith("plan[0]")
    assert message in error


@pytest.mark.parametrize(
    "operand",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1, 2]),
        torch.tensor([True]),
        torch.tensor([1j]),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_operands_that_cannot_be_added_are_a_format_error(operand: Tensor) -> None:
    error = broken(2, {}, {**TENSORS, "2.operand": operand})
    assert str(error).startswith("plan[2]")


def test_a_plan_from_before_there_were_keys_is_read() -> None:
    data = plain(to_data(Plan(PARTS[:1]))[0])
    del data["interventions"][0]["keys"]
    assert from_data(data, {})[0].keys is None


def test_keys_must_be_exactly_the_known_ones() -> None:
    data = plain(JSON)
    del data["interventions"][3]["unit"]
    with pytest.raises(
        FormatError, match=r"plan\[3\] must have exactly the keys gate, heads, keys, label"
    ):
        from_data(data, TENSORS)
    assert "exactly the keys" in str(broken(1, {"extra": 1}))


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["zero", "scale", "hook_embed", "blocks.*.hook_mlp_out", "all", "operand"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    index=st.integers(0, len(PARTS) - 1),
    key=st.sampled_from(sorted(JSON["interventions"][0])),
    value=VALUES,
)
@settings(max_examples=300)
def test_any_value_anywhere_is_read_or_is_a_format_error(index: int, key: str, value: Any) -> None:
    data = plain(JSON)
    data["interventions"][index][key] = value
    try:
        plan = from_data(data, TENSORS)
    except FormatError:
        return
    assert plain(to_data(plan)[0])["interventions"][index][key] == plain(value)


@given(data=VALUES)
def test_any_data_is_no_plan(data: Any) -> None:
    with pytest.raises(FormatError, match="No plan: expected"):
        from_data(data, {})


@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), which=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_one_wrong_byte_is_read_or_is_a_format_error(
    at: float, byte: int, which: bool, tmp_path: Path
) -> None:
    PLAN.save(tmp_path)
    file = tmp_path / ("plan.json" if which else "plan.safetensors")
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] = byte
    file.write_bytes(content)
    with contextlib.suppress(FormatError):
        assert len(Plan.load(tmp_path)) == len(PARTS)


def test_tensors_of_another_name_are_not_looked_at(tmp_path: Path) -> None:
    PLAN.save(tmp_path)
    save_file(
        {**TENSORS, "99.operand": torch.tensor([float("nan")])}, tmp_path / "plan.safetensors"
    )
    assert len(Plan.load(tmp_path)) == len(PARTS)


# --- packed --------------------------------------------------------------------------------------


def test_a_packed_plan_is_read_without_unpacking_it(tmp_path: Path) -> None:
    folder = PLAN.save(tmp_path / "plan")
    packed = shutil.make_archive(str(tmp_path / "plan"), "zip", folder)
    back = Plan.load(packed)
    assert to_data(back)[0] == JSON
    assert sorted(tmp_path.iterdir()) == [folder, Path(packed)]


def test_what_is_no_packed_plan_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.zip"
    file.write_bytes(b"PK")
    with pytest.raises(FormatError, match="holds no plan"):
        Plan.load(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("other.json", "{}")
    with pytest.raises(FormatError, match=r"holds no plan: .*plan\.json"):
        Plan.load(file)
    with pytest.raises(FormatError, match="holds no plan"):
        Plan.load(tmp_path / "nothing.zip")


def test_interventions_and_plans_show_themselves_in_a_line() -> None:
    shown = repr(PARTS[2])
    assert shown == (
        "Intervention(add at blocks.1.hook_resid_post, blocks.2.hook_resid_pre "
        "(window 1, None), 0.1 gap)"
    )
    assert repr(wb.ops.add(torch.ones(D))) == f"add(operand ({D},))"
    assert len(repr(PLAN)) < 1000
