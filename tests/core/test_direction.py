"""A direction is a vector with its sizes; as an intervention it is added or projected out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.direction import Direction
from workbench.core.errors import EmptySelectionError, FormatError, OptionError
from workbench.core.provenance import Provenance
from workbench.core.result import Check

SITE = wb.Site.parse("blocks.1.hook_resid_post")


def direction(label: str = "") -> Direction:
    return Direction(
        site=SITE,
        vector=4 * torch.nn.functional.normalize(tiny.normal(24), dim=0),
        gap=3.0,
        sigma=2.0,
        norm=10.0,
        unit="activation",
        checks=(Check("held-out d'", 1.5, "spreads", "above 2 is clear"),),
        provenance=Provenance("m", "s", "model", "f", "float32", "d"),
        label=label,
    )


def test_its_unit_vector_and_sizes() -> None:
    found = direction()
    assert float(found.unit_vector.norm()) == pytest.approx(1)
    sizes = {"raw": 4.0, "gap": 3.0, "sigma": 2.0, "norm": 10.0}
    assert dict(found.unit_sizes()) == pytest.approx(sizes)
    assert found.axes[0].name == "d"
    assert len(found.axes[0].labels) == 24


def test_at_adds_so_many_units_where_it_is_told() -> None:
    step = direction("joy").at(-1.5, unit="sigma", positions=[1], rows=[0])
    assert (step.strength, step.unit, step.unit_size, step.size) == (-1.5, "sigma", 2.0, -3.0)
    assert str(step) == "joy -1.5 sigma at blocks.1.hook_resid_post"
    model = tiny.model("gpt2", torch.float64)
    plain = wb.run(model, ["abc", "def"], record=[SITE])[SITE]
    moved = wb.run(model, ["abc", "def"], plan=[step], record=[SITE])[SITE] - plain
    tiny.close(moved[0, 1], -3.0 * direction().unit_vector.double(), 1e-6)
    moved[0, 1] = 0
    assert not moved.any()


def test_it_may_be_written_elsewhere_than_it_was_read() -> None:
    step = direction().at(1.0, site="blocks.*.hook_resid_pre")
    assert step.sites == ("blocks.*.hook_resid_pre",)
    assert str(step) == "direction +1 gap at blocks.*.hook_resid_pre"


def test_it_may_be_timed_and_gated() -> None:
    found, timed = direction(), wb.schedules.linear(1.0, 0.0, steps=3)
    gate = wb.gates.above(found.unit_vector, 0.5 * found.sigma)
    for one in (
        found.at(1.0, schedule=timed, gate=gate),
        found.erase(schedule=timed, gate=gate),
    ):
        assert one.schedule == timed
        assert one.gate is gate
    assert found.at(1.0).gate is found.at(1.0).schedule is None


def test_it_may_go_without_acting_where_that_is_meant() -> None:
    model, found = tiny.model(), direction()
    with pytest.raises(EmptySelectionError, match="beyond the 3 tokens"):
        wb.run(model, "abc", plan=[found.at(1.0, positions=[50])])
    with pytest.raises(EmptySelectionError, match="beyond the 3 tokens"):
        wb.run(model, "abc", plan=[found.erase(positions=[50])])
    late = [
        found.at(1.0, positions=[50], optional=True),
        found.erase(positions=[50], optional=True),
    ]
    trace = wb.run(model, "abc", plan=late)
    assert [receipt.acted for receipt in trace.receipts] == [0, 0]
    assert tiny.same_bytes(trace.logits, wb.run(model, "abc").logits)


def test_a_plan_of_it_is_the_same_from_its_file(tmp_path: Path) -> None:
    plan = wb.Plan((direction().at(2.0), direction().erase(positions=-1)))
    read = wb.Plan.load(plan.save(tmp_path / "plan"))
    model = tiny.model()
    one, other = wb.run(model, "abc", plan=plan).logits, wb.run(model, "abc", plan=read).logits
    assert tiny.same_bytes(one, other)


def test_an_unknown_unit_is_refused() -> None:
    at: Any = direction().at
    told = "unit must be one of raw, gap, sigma, norm, got 'sd'"
    with tiny.unchecked(), pytest.raises(OptionError, match=told):
        at(1.0, unit="sd")


def test_it_shows_its_sizes_with_its_checks_and_is_saved(tmp_path: Path) -> None:
    rows = {row["quantity"]: row["value"] for row in direction().table().rows()}
    assert rows == pytest.approx(
        {"raw": 4.0, "gap": 3.0, "sigma": 2.0, "norm": 10.0, "held-out d'": 1.5}
    )
    read = wb.load_result(direction().save(tmp_path / "joy.safetensors"))
    assert read.kind == "Direction"
    assert torch.equal(read.tensors["vector"], direction().vector)
    assert read.checks == direction().checks


def test_it_is_loaded_to_the_bit(tmp_path: Path) -> None:
    made = direction(label="joy")
    read = wb.Direction.load(made.save(tmp_path / "joy.safetensors"))
    assert tiny.same_bytes(read.vector, made.vector)
    assert (read.site, read.label, read.unit, read.checks) == (SITE, "joy", made.unit, made.checks)
    assert read.unit_sizes() == made.unit_sizes()
    assert read.provenance.to_json() == made.provenance.to_json()
    model = tiny.model()
    one, other = (wb.run(model, "abc", plan=[d.at(2.0)]).logits for d in (made, read))
    assert tiny.same_bytes(one, other)


def test_what_is_no_direction_is_not_loaded(tmp_path: Path) -> None:
    file = direction().save(tmp_path / "joy.safetensors")
    other = replace(wb.load_result(file), kind="Attribution", extra={})
    with pytest.raises(FormatError, match=r"holds no direction but a Attribution: 'site'"):
        wb.Direction.load(other.save(tmp_path / "other.safetensors"))
    wrong = replace(wb.load_result(file), tensors={"vector": torch.full((24,), float("nan"))})
    with pytest.raises(FormatError, match="one axis of finite numbers"):
        wb.Direction.load(wrong.save(tmp_path / "wrong.safetensors"))
    with pytest.raises(FormatError, match="is no saved result"):
        wb.Direction.load(tmp_path / "missing.safetensors")


def test_it_shows_itself_in_a_line() -> None:
    shown = repr(direction())
    assert shown == "Direction(24 d, in activation, by m on model; held-out d' 1.5 spreads)"


def test_a_zero_vector_can_be_kept_but_neither_added_nor_erased() -> None:
    nowhere = replace(direction(), vector=torch.zeros(24))
    for use in (lambda: nowhere.at(1.0), nowhere.erase, lambda: nowhere.unit_vector):
        with pytest.raises(OptionError, match="vector must be a vector that points somewhere"):
            use()


@pytest.mark.parametrize("vector", [torch.full((3,), float("nan")), torch.ones(2, 2)])
def test_what_is_no_vector_is_refused(vector: torch.Tensor) -> None:
    with tiny.unchecked(), pytest.raises(OptionError, match="vector must be one axis of finite"):
        replace(direction(), vector=vector)


@pytest.mark.parametrize("name", ["attn.hook_z", "attn.hook_k", "hook_q_input"])
def test_a_direction_over_all_heads_of_a_site_is_added_and_erased_there(name: str) -> None:
    model, site = tiny.model(), wb.Site.parse(f"blocks.1.{name}")
    before = wb.run(model, "abcab", record=[site])[site]
    vector = tiny.normal(before.shape[-2:].numel(), seed=3)
    found = replace(direction(), site=site, vector=vector)
    added = wb.run(model, "abcab", plan=[found.at(2.0, unit="raw")], record=[site])[site]
    tiny.close((added - before).flatten(-2), 2 * vector.expand(1, 5, -1), 1e-5)
    erased = wb.run(model, "abcab", plan=[found.erase()], record=[site])[site].flatten(-2)
    tiny.close(erased @ found.unit_vector, torch.zeros(1, 5), 1e-5)
    along = (before.flatten(-2) @ found.unit_vector)[..., None] * found.unit_vector
    tiny.close(erased, before.flatten(-2) - along, 1e-5)
