"""The result of an attribution: mean, error, largest, table and file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.attribution.examples import ONE, THREE
from workbench.attribution import METHODS, Attribution
from workbench.core.provenance import Provenance
from workbench.core.result import Axis, Check

GRID = torch.tensor([[[1.0, -5.0], [5.0, 0.0]], [[3.0, -7.0], [5.0, 0.0]]])


def attribution(per_example: Tensor = GRID) -> Attribution:
    count = len(per_example)
    return Attribution(
        per_example=per_example,
        axes=(Axis("layer", ("0", "1")), Axis("pos", ("a", "b"))),
        unit="logits",
        kind="effect",
        metric="logit_difference",
        base=torch.ones(count),
        donor=torch.zeros(count),
        checks=(Check("cells", 4.0, "runs", "each one exact"),),
        provenance=Provenance("m", "s", "model", "f", "float32", "d"),
    )


def test_scores_are_the_mean_and_its_standard_error() -> None:
    found = attribution()
    assert found.scores.tolist() == [[2, -6], [5, 0]]
    # Two values at a distance of 2: deviation sqrt(2), over sqrt(2) examples.
    assert found.standard_error.flatten().tolist() == pytest.approx([1, 1, 0, 0])


def test_a_single_example_has_no_standard_error() -> None:
    found = attribution(GRID[:1])
    assert bool(found.standard_error.isnan().all())
    assert found.standard_error.shape == (2, 2)
    assert "nan" in str(found.table())


def test_the_largest_come_first_whatever_their_sign() -> None:
    top = attribution().top(3)
    assert top.rows() == [
        {"layer": "0", "pos": "b", "score": -6.0},
        {"layer": "1", "pos": "a", "score": 5.0},
        {"layer": "0", "pos": "a", "score": 2.0},
    ]
    assert len(attribution().top(99)) == 4
    assert len(attribution().top(0)) == 0


def test_equal_scores_stay_in_their_order() -> None:
    top = attribution(torch.ones(1, 2, 2)).top(4)
    assert list(zip(top.columns["layer"], top.columns["pos"], strict=True)) == [
        ("0", "a"), ("0", "b"), ("1", "a"), ("1", "b"),
    ]  # fmt: skip


def test_the_table_has_a_row_per_place_with_its_error() -> None:
    table = attribution().table()
    assert list(table.columns) == ["layer", "pos", "score", "standard_error"]
    assert table.columns["layer"] == ["0", "0", "1", "1"]
    assert table.columns["score"] == [2, -6, 5, 0]


@pytest.mark.parametrize("contrast", [ONE, THREE], ids=["one", "three"])
@pytest.mark.parametrize("name", list(METHODS))
def test_it_comes_back_from_its_file(name: str, contrast: wb.Contrast, tmp_path: Path) -> None:
    found = METHODS[name](tiny.model("gpt2"), contrast)
    read = wb.load_result(found.save(tmp_path / "deep" / "scores.safetensors"))
    assert read.kind == "Attribution"
    assert (read.axes, read.unit, read.checks) == (found.axes, found.unit, found.checks)
    assert read.provenance.method == found.provenance.method
    assert read.provenance.parameters["axes"] == list(found.provenance.parameters["axes"])
    for key, tensor in found.values().items():
        assert tiny.same_bytes(read.tensors[key], tensor), key
    assert read.table().columns["scores"] == found.table().columns["score"]


def test_a_result_read_back_and_saved_again_is_the_same(tmp_path: Path) -> None:
    first = wb.load_result(attribution().save(tmp_path / "one.safetensors"))
    again = wb.load_result(first.save(tmp_path / "two.safetensors"))
    assert (again.kind, again.axes, again.provenance) == (first.kind, first.axes, first.provenance)


def test_provenance_tells_data_and_parameters_apart() -> None:
    method, model = METHODS["activation_patching"], tiny.model()
    one, same, other = method(model, ONE), method(model, ONE), method(model, THREE)
    assert one.provenance == same.provenance
    assert one.provenance.data != other.provenance.data
    assert method(model, ONE, axes=["layer"]).provenance != one.provenance
