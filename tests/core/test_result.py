"""Tables print and draw safely; results come back from their files or say what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from tests import tiny
from workbench.core.errors import FormatError
from workbench.core.provenance import Provenance
from workbench.core.result import FORMAT, Axis, Check, SavedResult, Table, grid_table, load_result

GRID = (Axis("layer", ("0", "1")), Axis("pos", ("a", "b", "c")))


def result() -> SavedResult:
    return SavedResult(
        kind="Scores",
        axes=GRID,
        unit="logits",
        checks=(Check("residual", float("nan"), "logits", "0 is good"),),
        provenance=Provenance("m", "s", "model", "f", "float32", "d", {"k": 1}, 3),
        tensors={"z": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2)},
        extra={"metric": "loss"},
    )


def test_a_table_is_aligned_with_four_digits() -> None:
    table = Table({"name": ["a", "long one"], "value": [1.23456789, float("nan")]})
    assert str(table) == "    name  value\n       a  1.235\nlong one    nan"
    assert len(table) == 2
    assert table.rows()[0] == {"name": "a", "value": 1.23456789}
    assert list(table.to_pandas().columns) == ["name", "value"]


def test_an_empty_table_prints_its_head() -> None:
    assert str(Table({"name": [], "value": []})) == "name  value"
    assert len(Table({})) == 0
    assert str(Table({})) == ""


def test_a_table_draws_text_and_never_markup() -> None:
    token = "<script>alert('x')</script>&"
    drawn = Table({token: [token]})._repr_html_()
    assert "<script" not in drawn
    assert drawn.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;") == 2


def test_columns_of_different_lengths_are_no_table() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Table({"a": [1, 2], "b": [1]}).rows()


def test_a_grid_goes_through_its_last_axis_first() -> None:
    table = grid_table(GRID, {"score": torch.arange(6).reshape(2, 3)})
    assert table.columns["layer"] == ["0"] * 3 + ["1"] * 3
    assert table.columns["pos"] == ["a", "b", "c"] * 2
    assert table.columns["score"] == list(range(6))
    line = grid_table(GRID[:1], {"score": torch.tensor([5.0, 6.0])})
    assert line.rows() == [{"layer": "0", "score": 5.0}, {"layer": "1", "score": 6.0}]


def test_a_result_comes_back_whole_and_in_order(tmp_path: Path) -> None:
    read = load_result(result().save(tmp_path / "new" / "one.safetensors"))
    assert list(read.tensors) == ["z", "a"]
    assert (read.kind, read.axes, read.unit) == ("Scores", GRID, "logits")
    assert read.provenance == result().provenance
    assert read.details() == {"metric": "loss"}
    assert str(read.checks) == str(result().checks)  # NaN is not equal to itself
    assert read.table().columns["z"] == list(range(6))


def test_a_result_shows_itself_in_a_line() -> None:
    told = "Scores(2 layer x 3 pos, in logits, by m on model; residual unknown)"
    assert repr(result()) == told
    assert repr(replace(result(), checks=())).endswith("; no checks)")


def test_views_and_graphs_are_saved_as_plain_values(tmp_path: Path) -> None:
    base = torch.arange(6.0, requires_grad=True)
    views = {"z": base.reshape(3, 2).t(), "same": base[:3]}
    one = replace(result(), tensors=views)
    read = load_result(one.save(tmp_path / "one.safetensors"))
    assert torch.equal(read.tensors["z"], base.detach().reshape(3, 2).t())
    assert not read.tensors["same"].requires_grad


@pytest.mark.parametrize("share", [0, 1, 10, 50, 90, 99])
def test_a_truncated_file_is_refused(share: int, tmp_path: Path) -> None:
    file = result().save(tmp_path / "one.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * share // 100])
    with pytest.raises(FormatError, match="is no saved result"):
        load_result(file)


def header() -> dict[str, object]:
    return {
        "kind": "Scores", "values": ["z"], "unit": "", "axes": [], "checks": [],
        "provenance": result().provenance.to_json(), "details": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "null", "{}", "{", "[" * 100_000,
        *(json.dumps({k: v for k, v in header().items() if k != gone}) for gone in header()),
        json.dumps({**header(), "axes": [3]}),
        json.dumps({**header(), "axes": [["layer"]]}),
        json.dumps({**header(), "checks": [[1]]}),
        json.dumps({**header(), "values": ["missing"]}),
        json.dumps({**header(), "provenance": {"strange": 1}}),
        json.dumps({**header(), "provenance": []}),
        json.dumps({**header(), "details": 3}),
    ],
    ids=range(21),
)  # fmt: skip
def test_a_malformed_header_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    save_file({"z": torch.ones(2)}, file, {FORMAT: text})
    with pytest.raises(FormatError, match="is no saved result"):
        load_result(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"axes": [["layer", ["0"]]]},
        {"axes": [[3, ["0", "1"]]]},
        {"axes": [["layer", [0, 1]]]},
        {"values": [], "axes": []},
        {"unit": 3},
        {"checks": [[1, 0.5, "nats", ""]]},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_tensors_is_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    file, fits = tmp_path / "one.safetensors", {"axes": [["layer", ["0", "1"]]]}
    save_file({"z": torch.ones(2)}, file, {FORMAT: json.dumps({**header(), **fits})})
    assert load_result(file).table().columns["z"] == [1.0, 1.0]
    save_file({"z": torch.ones(2)}, file, {FORMAT: json.dumps({**header(), **fits, **changes})})
    with tiny.unchecked(), pytest.raises(FormatError, match="is no saved result"):
        load_result(file)


def test_what_is_no_result_at_all_is_refused(tmp_path: Path) -> None:
    save_file({"z": torch.ones(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "text").write_text("hello")
    for name in ("weights.safetensors", "text", "missing", "."):
        with pytest.raises(FormatError, match="is no saved result"):
            wb.load_result(tmp_path / name)
