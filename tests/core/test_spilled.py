"""What a run left in a folder is read again, and nothing else is."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests import tiny
from workbench.core import spill as spill_file
from workbench.core.errors import (
    FormatError,
    MismatchError,
    NeverActedError,
    NotRecordedError,
    StorageError,
    UnknownNameError,
)

ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10]]
PLAN = [wb.Intervention("blocks.1.hook_resid_pre", wb.ops.scale(2.0), label="double")]
SITE = "blocks.1.attn.hook_z"
Harm = Callable[[Path], object]


def spilled(folder: Path, **options: Any) -> wb.Trace:
    options = {"record": "blocks.*.attn.*", **options}
    return wb.run(tiny.model(), ROWS, spill=folder, **options)


def mask_of(side: str) -> list[list[int]]:
    rows = [[1] * len(row) for row in ROWS]
    return [[0] * (6 - len(r)) + r if side == "left" else r + [0] * (6 - len(r)) for r in rows]


@pytest.mark.parametrize("max_tokens", [None, 6])
@pytest.mark.parametrize("record", ["*", ["hook_embed", SITE]])
@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_the_trace_that_was_written(
    tmp_path: Path, max_tokens: int | None, record: Any, side: Any
) -> None:
    trace = spilled(tmp_path, plan=PLAN, record=record, max_tokens=max_tokens, padding_side=side)
    again = wb.load_trace(tmp_path, model=tiny.model())
    assert again.sites == trace.sites == tuple(again)
    assert len(again) == len(trace)
    for site, value in trace.items():
        assert tiny.same_bytes(again[site], value)
        assert tiny.same_bytes(again[str(site)], value)
    assert torch.equal(again.batch.tokens, trace.batch.tokens)
    assert again.batch.real is not None
    assert again.batch.real.tolist() == [[bool(i) for i in row] for row in mask_of(side)]
    assert again.batch.lengths.tolist() == [6, 3, 1]
    assert again.fingerprint == tiny.model().fingerprint
    assert (again.model, again.plan) == (tiny.model().name, ("double",))


@pytest.mark.parametrize("max_tokens", [None, 6])
def test_of_a_run_of_everything_it_has_the_streams(tmp_path: Path, max_tokens: int | None) -> None:
    trace = spilled(tmp_path, plan=PLAN, record="all", max_tokens=max_tokens)
    again = wb.load_trace(tmp_path)
    pre = [f"blocks.{layer}.hook_resid_pre" for layer in (0, 2)]  # the plan changes that of block 1
    post = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    assert set(map(str, again)) == {*pre, *post}
    for site, value in again.items():
        assert tiny.same_bytes(value, trace[site])
    assert SITE not in again
    with pytest.raises(NotRecordedError, match=r"does not have blocks\.1\.attn\.hook_z; give"):
        again[SITE]
    with pytest.raises(UnknownNameError):
        again["blocks.1.attn.z"]


REPLAYED = [
    *PLAN,
    wb.Intervention("blocks.0.attn.hook_pattern", wb.ops.scale(0.7), rows=[2, 0], heads=1),
    wb.Intervention("blocks.2.hook_mlp_out", wb.ops.add(tiny.normal(3, 6, 24))),
]


@pytest.mark.parametrize("max_tokens", [None, 6])
@pytest.mark.parametrize("side", ["left", "right"])
def test_with_its_model_a_run_of_everything_is_replayed(
    tmp_path: Path, max_tokens: int | None, side: Any
) -> None:
    options: Any = {"record": "all", "max_tokens": max_tokens, "padding_side": side}
    trace = spilled(tmp_path, plan=REPLAYED, **options)
    again = wb.load_trace(tmp_path, model=tiny.model())
    assert again.sites == trace.sites == tiny.model().sites
    for (site, value), (other, own) in zip(again.items(), trace.items(), strict=True):
        assert site == other
        assert tiny.same_bytes(value, own), site
    some = ["blocks.*.attn.hook_pattern", SITE]
    read, own = again.read(some), trace.read(some)
    assert list(read) == list(own)
    for site, value in read.items():
        assert tiny.same_bytes(value, own[site])
    assert SITE in again
    assert len(again) == len(trace)


def test_a_run_of_everything_from_a_stream_is_replayed_from_there_on(tmp_path: Path) -> None:
    whole = wb.run(tiny.model(), ROWS, record="all")
    given = (1, whole["blocks.1.hook_resid_pre"])
    wb.run(tiny.model(), ROWS, record="all", start=given, spill=tmp_path)
    again = wb.load_trace(tmp_path, model=tiny.model())
    assert str(again.sites[0]) == "blocks.1.hook_resid_pre"
    assert tiny.same_bytes(again[SITE], whole[SITE])
    with pytest.raises(NotRecordedError, match=r"does not have blocks\.0\.attn\.hook_z"):
        again["blocks.0.attn.hook_z"]


def test_another_plan_or_a_recipe_that_is_none_is_refused(tmp_path: Path) -> None:
    spilled(tmp_path, plan=PLAN, record="all")
    for replay in ({"first": "0"}, {"first": -1, "given": False, "plan": "x"}, 5):
        rewritten(tmp_path, replay=replay)
        with pytest.raises(FormatError, match="does not say how to replay"):
            wb.load_trace(tmp_path)
    rewritten(tmp_path, replay={"first": 0, "given": False, "plan": "x"})
    with pytest.raises(FormatError, match="has the plan of another run"):
        wb.load_trace(tmp_path, model=tiny.model())
    assert len(wb.load_trace(tmp_path)) > 0  # without the model nobody needs the plan
    (tmp_path / "plan.json").unlink()
    with pytest.raises(FormatError, match=r"lacks plan\.json"):
        wb.load_trace(tmp_path)


def test_what_the_system_leaves_in_a_folder_does_no_harm(tmp_path: Path) -> None:
    spilled(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".nfs0001").mkdir()
    assert SITE in wb.load_trace(tmp_path)


def test_masks_and_starts_are_kept(tmp_path: Path) -> None:
    ids, mask = tiny.tokens(2, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 3, 0] = False
    wb.run(tiny.model(), ids, record=SITE, attention_mask=mask, spill=tmp_path)
    seen = wb.load_trace(tmp_path).batch.seen
    assert seen is not None
    assert torch.equal(seen, mask)


def test_it_is_mapped_and_says_what_it_is(tmp_path: Path) -> None:
    spilled(tmp_path)
    trace = wb.load_trace(tmp_path)
    value = trace[SITE]
    maps = Path("/proc/self/maps")
    if maps.exists():  # elsewhere the system does not say
        assert str(tmp_path / f"{SITE}.safetensors") in maps.read_text()
    value[:] = 0  # a mapping of one's own: the file keeps its bytes
    assert bool(trace[SITE].any())
    assert "3 x 6 tokens, 27 sites, 0 interventions" in repr(trace)
    assert len({trace, wb.load_trace(tmp_path)}) == 2
    assert SITE in trace


def test_another_model_is_refused(tmp_path: Path) -> None:
    spilled(tmp_path)
    with pytest.raises(MismatchError, match="fingerprint is"):
        wb.load_trace(tmp_path, model=tiny.model("gpt2"))


def test_a_run_that_failed_leaves_no_trace(tmp_path: Path) -> None:
    cut = wb.Intervention("hook_embed", wb.ops.zero(), positions=slice(9, None))
    with pytest.raises(NeverActedError):
        spilled(tmp_path, plan=[cut])
    assert any(tmp_path.iterdir())
    with pytest.raises(FormatError, match=r"has no trace\.json: no run was finished there"):
        wb.load_trace(tmp_path)
    with pytest.raises(FormatError, match="is no folder"):
        wb.load_trace(tmp_path / "none")


def test_a_disk_that_is_full_at_the_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill_file, "write_json", full)
    with pytest.raises(StorageError, match=r"trace\.json cannot be written"):
        spilled(tmp_path)


# --- harm ---------------------------------------------------------------------------------------


def rewritten(folder: Path, **entries: Any) -> None:
    index = json.loads((folder / "trace.json").read_text())
    (folder / "trace.json").write_text(json.dumps({**index, **entries}))


def retold(folder: Path, **sites: Any) -> None:
    index = json.loads((folder / "trace.json").read_text())
    rewritten(folder, sites={**index["sites"], **sites})


def other(folder: Path) -> None:
    """A file of another run, alike but for that."""
    spilled(folder / "other")
    shutil.copy(folder / "other" / f"{SITE}.safetensors", folder)
    shutil.rmtree(folder / "other")


def resaved(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = folder / f"{SITE}.safetensors"
    run = json.loads((folder / "trace.json").read_text())["run"]
    save_file({SITE: change(load_file(file)[SITE])}, file, {"run": run})


def linked(folder: Path) -> None:
    file = folder / f"{SITE}.safetensors"
    file.rename(folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


def cut(folder: Path) -> None:
    file = folder / f"{SITE}.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


HARM: dict[str, tuple[Harm, str]] = {
    "missing": (lambda f: (f / f"{SITE}.safetensors").unlink(), r"lacks blocks\.1\.attn\.hook_z\."),
    "no batch": (lambda f: (f / "batch.safetensors").unlink(), r"lacks batch\.safetensors"),
    "unknown": (lambda f: (f / "notes.txt").write_text("x"), r"files of no trace: notes\.txt"),
    "pickle": (lambda f: (f / "model.pt").write_bytes(b"x"), r"files of no trace: model\.pt"),
    "another run's": (other, r"hook_z\.safetensors is of another run"),
    "cut off": (cut, r"hook_z\.safetensors cannot be read"),
    "link": (linked, r"hook_z\.safetensors is a link"),
    "shape": (lambda f: resaved(f, lambda t: t[:, :5].contiguous()), r"not .* of \[3, 6, 4, 8\]"),
    "dtype": (lambda f: resaved(f, torch.Tensor.double), r"hook_z\.safetensors is not of float32"),
    "batch": (
        lambda f: save_file({"tokens": torch.ones(3, 6).long()}, f / "batch.safetensors"),
        r"batch\.safetensors is not the batch of this trace",
    ),
    "no JSON": (lambda f: (f / "trace.json").write_text("{"), "it is not JSON"),
    "deep": (lambda f: (f / "trace.json").write_text("[" * 100_000), "it is not JSON"),
    "list": (lambda f: (f / "trace.json").write_text("[]"), "workbench.trace"),
    "version": (lambda f: rewritten(f, version=2), "has version 2; this workbench reads 1"),
    "plan": (lambda f: rewritten(f, plan=[1]), "workbench.trace"),
    "parts": (lambda f: rewritten(f, parts=[[True]]), "its parts are no rows"),
    "tensors": (lambda f: rewritten(f, tensors={SITE: {"dtype": "float32"}}), "no dtype and shape"),
    "escape": (lambda f: retold(f, hook_embed="../../secret"), r"'\.\./\.\./secret' is no site"),
    "no site": (lambda f: retold(f, hook_embedding=SITE), "'hook_embedding' is no site"),
    "tensor": (lambda f: retold(f, hook_embed="stream.1"), "not among its tensors"),
    "other axes": (lambda f: retold(f, hook_embed=SITE), "is not hook_embed"),
    "tensor escape": (
        lambda f: rewritten(f, tensors={"../x": {"dtype": "float32", "shape": [1]}}),
        r"'\.\./x' is no site",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_folder_that_was_harmed_is_refused_by_name(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "trace"
    spilled(folder)
    harmed, message = HARM[harm]
    harmed(folder)
    with pytest.raises(FormatError, match=message):
        wb.load_trace(folder)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[2], [1], [1]], "its parts are not the rows"),
        ([[2], [1], [3]], "its parts are not the rows"),
        ([[2], [1], []], "its parts are no rows"),
        ([[2], [0], [1]], "is not blocks"),
        ([[2]], "is of none of its 1 parts"),
    ],
    ids=["twice", "beyond", "empty", "others", "fewer"],
)
def test_parts_must_be_those_that_ran(tmp_path: Path, parts: Any, message: str) -> None:
    spilled(tmp_path, max_tokens=9, record=[SITE])
    assert json.loads((tmp_path / "trace.json").read_text())["parts"] == [[2], [1], [0]]
    rewritten(tmp_path, parts=parts)
    with pytest.raises(FormatError, match=message):
        wb.load_trace(tmp_path)


def test_a_batch_that_is_none_is_refused(tmp_path: Path) -> None:
    spilled(tmp_path)
    file = tmp_path / "batch.safetensors"
    whole = load_file(file)
    for change in ({"real": torch.ones(3, 5).bool()}, {"strange": torch.ones(1)}):
        save_file({**whole, **change}, file)
        rewritten(tmp_path, batch=hashlib.sha256(file.read_bytes()).hexdigest())
        with pytest.raises(FormatError, match="holds no batch"):
            wb.load_trace(tmp_path)


def test_a_file_that_goes_later_is_named(tmp_path: Path) -> None:
    spilled(tmp_path)
    trace = wb.load_trace(tmp_path)
    (tmp_path / f"{SITE}.safetensors").unlink()
    with pytest.raises(FormatError, match=r"hook_z\.safetensors cannot be read"):
        trace[SITE]
