"""A grid names what varies; each of its cells equals a run of its own."""

from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.errors import (
    AlignmentError,
    EmptySelectionError,
    OptionError,
    UnknownNameError,
)

CONTRAST = wb.Contrast(
    clean=["abcab", "the cat sat on"],
    corrupt=["abxab", "the cat lay on"],
    target=["c", " "],
    foil=["d", "x"],
)
METRIC = wb.metrics.logit_difference(CONTRAST)
ONE = wb.Contrast(clean="abcab", corrupt="abxab", target="c", foil="d")
ALONE = wb.metrics.logit_difference(ONE)


@pytest.fixture(scope="module", params=tiny.KINDS)
def model(request: pytest.FixtureRequest) -> wb.Model:
    """A tiny model in float64."""
    return tiny.model(request.param, torch.float64)


def effect(model: wb.Model, cut: wb.Intervention) -> torch.Tensor:
    """Of one change, by two ordinary runs."""
    changed = METRIC(wb.run(model, CONTRAST.clean, plan=[cut]))
    return changed - METRIC(wb.run(model, CONTRAST.clean))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_knock_out_of_every_head_has_the_axes_it_was_asked_for(model: wb.Model) -> None:
    z = "blocks.{}.attn.hook_z"
    grid = wb.Grid("blocks.*.attn.hook_z", ("head", "layer"), wb.ops.zero())
    found = wb.sweep(model, CONTRAST.clean, grid, METRIC)
    assert [axis.name for axis in found.axes] == ["head", "layer"]
    assert found.axes[0].labels[1] == "H1"
    assert found.axes[1].labels == ("0", "1", "2")
    cut = wb.Intervention(z.format(2), wb.ops.zero(), heads=[1])
    close(found.effects[1, 2], effect(model, cut))
    close(found.effect, found.effects.mean(-1))


def test_neurons_rows_and_strengths_are_axes_too(model: wb.Model) -> None:
    vector = tiny.normal(model.sizes.d_model, dtype=torch.float64)
    doses = (-2.0, 0.0, 1.5)
    grid = wb.Grid(
        "blocks.1.hook_resid_post", ("strength", "row"), wb.ops.add(vector), strengths=doses
    )
    found = wb.sweep(model, CONTRAST.clean, grid, METRIC)
    assert found.axes[0].labels == ("-2", "0", "1.5")
    assert torch.equal(found.effects[1], torch.zeros(2, 2, dtype=torch.float64))
    push = wb.Intervention("blocks.1.hook_resid_post", wb.ops.add(vector), strength=1.5, rows=[1])
    close(found.effects[2, 1], effect(model, push))
    assert float(found.effects[2, 1, 0]) == 0  # the other row is left alone
    grid = wb.Grid("blocks.0.mlp.hook_post", "neuron", wb.ops.zero(), only={"neuron": [5, 2]})
    found = wb.sweep(model, CONTRAST.clean, grid, METRIC)
    assert found.axes[0].labels == ("5", "2")
    close(
        found.effect[0],
        effect(model, wb.Intervention("blocks.0.mlp.hook_post", wb.ops.zero(), neurons=5)).mean(),
    )


def test_every_pair_of_query_and_key_is_a_cell(model: wb.Model) -> None:
    grid = wb.Grid(
        "blocks.1.attn.hook_pattern", ("pos", "key"), wb.ops.zero(), only={"head": 1, "pos": [2, 4]}
    )
    found = wb.sweep(model, ONE.clean, grid, ALONE)
    assert found.done.shape == (2, 5)
    assert torch.equal(found.effect[0, 3:], torch.zeros(2, dtype=torch.float64))  # the future
    site = "blocks.1.attn.hook_pattern"
    cut = wb.Intervention(site, wb.ops.zero(), heads=1, positions=[4], keys=[2])
    base = ALONE(wb.run(model, ONE.clean))
    close(found.effects[1, 2], ALONE(wb.run(model, ONE.clean, plan=[cut])) - base)


@pytest.mark.parametrize(
    ("sites", "over"),
    [
        ("blocks.*.hook_resid_pre", ("layer", "pos")),
        ("blocks.*.attn.hook_z", ("layer", "head")),
        ("blocks.*.attn.hook_k", ("pos", "layer", "head")),
        (["blocks.0.hook_mlp_out", "blocks.1.hook_attn_out"], ("site",)),
        ("blocks.1.attn.hook_pattern", ("head",)),
        ("blocks.1.attn.hook_pattern", ("pos", "key")),
    ],
)
def test_patching_from_a_source_equals_one_run_per_cell(
    model: wb.Model, sites: Any, over: tuple[str, ...]
) -> None:
    grid = wb.Grid(sites, over)
    found = wb.sweep(model, CONTRAST.clean, grid, METRIC, source=CONTRAST.corrupt)
    given = wb.run(model, CONTRAST.corrupt, record=sites)
    shape = found.done.shape
    base = METRIC(wb.run(model, CONTRAST.clean))
    for place in torch.ones(shape).nonzero().tolist()[:: max(1, found.done.numel() // 12)]:
        at = dict(zip(over, place, strict=True))
        site = grid.chosen(model)[at.get("layer", at.get("site", 0))]
        patch = wb.Intervention(
            site,
            wb.ops.set(given[site]),
            positions=at.get("pos"),
            heads=at.get("head"),
            keys=at.get("key"),
            optional=True,
        )
        alone = METRIC(wb.run(model, CONTRAST.clean, plan=[patch])) - base
        close(found.effects[tuple(place)], alone)
    assert found.source is not None
    close(found.source, METRIC(wb.run(model, CONTRAST.corrupt)))
    checks = {check.name: check.value for check in found.checks}
    assert checks["cells"] == found.done.numel()
    assert checks["residual"] < 1e-10
    assert checks["total effect"] == pytest.approx(float((found.source - base).mean()))


def test_where_the_prompts_agree_nothing_is_run() -> None:
    model = tiny.model(dtype=torch.float64)
    grid = wb.Grid("blocks.*.hook_resid_pre", ("layer", "pos"))
    found = wb.sweep(model, ONE.clean, grid, ALONE, source=ONE.corrupt)
    assert {check.name: check.value for check in found.checks}["parted"] == 2
    assert torch.equal(found.effect[:, :2], torch.zeros(3, 2, dtype=torch.float64))
    assert bool((found.effect[:, 2:] != 0).any())
    same = wb.sweep(model, ONE.clean, grid, ALONE, source=ONE.clean)
    assert (same.waves, float(same.effect.abs().max())) == (0, 0.0)


def test_the_interval_is_of_the_mean_over_examples() -> None:
    model = tiny.model(dtype=torch.float64)
    grid = wb.Grid("blocks.*.attn.hook_z", ("layer", "head"), wb.ops.zero())
    found = wb.sweep(model, CONTRAST.clean, grid, METRIC)
    low, high = found.interval()
    assert low.shape == found.effect.shape
    assert bool(((low <= found.effect) & (found.effect <= high)).all())
    assert list(found.table().columns) == ["layer", "head", "effect", "low", "high"]
    with pytest.raises(EmptySelectionError, match="2 or more examples, got 1"):
        wb.sweep(model, ONE.clean, grid, ALONE).interval()


def test_a_sweep_that_is_stopped_keeps_what_it_has() -> None:
    model = tiny.model(dtype=torch.float64)
    grid = wb.Grid("blocks.*.attn.hook_z", ("layer", "head"), wb.ops.zero())
    whole = wb.sweep(model, CONTRAST.clean, grid, METRIC)
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 3

    part = wb.sweep(model, CONTRAST.clean, grid, METRIC, max_tokens=1, stop=stop)
    assert (part.n_done, part.complete) == (3, False)
    close(part.effect[part.done], whole.effect[part.done])
    assert bool(part.effect[~part.done].isnan().all())
    assert {check.name: check.value for check in part.checks}["cells"] == 3
    with pytest.raises(OptionError, match="read of a whole sweep"):
        part.interval()


def test_a_budget_of_bytes_makes_smaller_batches_and_the_same_values() -> None:
    model = tiny.model(dtype=torch.float64)
    grid = wb.Grid("blocks.*.attn.hook_z", ("layer", "head"), wb.ops.zero())
    wide, narrow = (
        wb.sweep(model, CONTRAST.clean, grid, METRIC, max_bytes=size) for size in (2**30, 100_000)
    )
    assert wide.waves < narrow.waves
    close(wide.changed, narrow.changed)


def test_check_is_called_while_it_runs() -> None:
    def check() -> None:
        raise InterruptedError

    cut = wb.Intervention("blocks.0.attn.hook_z", wb.ops.zero(), heads=0)
    with pytest.raises(InterruptedError):
        wb.sweep(tiny.model(), ONE.clean, [cut], ALONE, check=check)


def test_a_result_is_saved_with_its_axes(tmp_path: Any) -> None:
    model = tiny.model()
    grid = wb.Grid("blocks.*.attn.hook_z", ("layer", "head"), wb.ops.zero())
    found = wb.sweep(model, CONTRAST.clean, grid, METRIC)
    back = wb.load_result(found.save(tmp_path / "heads.safetensors"))
    assert torch.equal(back.values()["changed"], found.changed)
    assert back.axes == found.axes
    assert back.details()["metric"] == "logit_difference"
    assert len(found.top(3)) == 3


Z = "blocks.*.attn.hook_z"
ZERO = wb.ops.zero()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Z, "heads", ZERO), {}, "over must be some of site, layer, row, pos"),
        ((Z, ("head", "head"), ZERO), {}, "each once"),
        ((Z, ("site", "layer"), ZERO), {}, "with 'layer' or 'site', not both"),
        ((Z, "head", ZERO), {}, "over must be with 'layer' or 'site': there are several sites"),
        (("blocks.*.hook_mlp_out", ("layer", "head"), ZERO), {}, "without 'head': blocks.0"),
        ((["blocks.0.hook_mlp_out", Z], "layer", ZERO), {}, "with 'site' for 'layer'"),
        ((Z, "layer"), {}, "source must be given: the grid has no operator"),
        ((Z, "layer", "zero"), {}, "operator must be one of wb.ops"),
        ((Z, "layer", ZERO), {"strengths": [1, 2]}, "several with 'strength' in over"),
        ((Z, "layer", ZERO), {"only": {"layer": [1]}}, "only must be entries of some of row, pos"),
        ((Z, ("layer", "head"), ZERO), {"only": {"head": [9]}}, r"only\['head'\] must be below"),
        ((Z, ("layer", "head"), ZERO), {"only": {"head": [-1]}}, "indices from 0 up"),
        ((["blocks.0.attn.hook_q", "blocks.0.attn.hook_k"], ("site", "head"), ZERO), {}, "equally"),
    ],
)
def test_what_is_no_grid_is_refused(arguments: Any, options: Any, message: str) -> None:
    with tiny.unchecked(), pytest.raises(OptionError, match=message):
        wb.sweep(tiny.model(), ONE.clean, wb.Grid(*arguments, **options), ALONE)


def test_a_source_must_match_the_base_and_be_asked_for() -> None:
    model, patch = tiny.model(), wb.Grid(Z, "layer")
    with pytest.raises(AlignmentError, match="they must match one by one"):
        wb.sweep(model, ONE.clean, patch, ALONE, source="abc")
    with pytest.raises(OptionError, match="source must be left out: the grid has an operator"):
        wb.sweep(model, ONE.clean, wb.Grid(Z, "layer", ZERO), ALONE, source=ONE.corrupt)
    with pytest.raises(OptionError, match="only a Grid without an operator reads it"):
        wb.sweep(model, ONE.clean, [wb.Intervention(Z, ZERO)], ALONE, source=ONE.corrupt)
    with pytest.raises(UnknownNameError):
        wb.sweep(model, ONE.clean, wb.Grid("blocks.9.hook_mlp_out", "layer", ZERO), ALONE)
