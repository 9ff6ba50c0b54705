"""What the engine does with every family: replays, gradients, sweeps, generation refused or not."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.contracts.test_families import built, families, model_of
from tests.families import EXAMPLES, hf
from workbench.core.data import Batch, batch_of
from workbench.core.errors import OptionError
from workbench.core.grid import Grid, spread
from workbench.core.operators import Scale, Zero
from workbench.models.transformer import Transformer

pytestmark = pytest.mark.usefixtures("unchecked")
ROWS = [tiny.tokens(6, seed=1).tolist(), tiny.tokens(4, seed=2).tolist()]
encoders = pytest.mark.parametrize("name", [name for name in EXAMPLES if not EXAMPLES[name].causal])


def asked(model: Transformer, rows: Any = ROWS) -> Batch:
    """Two rows of unlike length, asked about their second token."""
    return batch_of(model, rows, answer=1)


def first_columns(logits: Tensor) -> Tensor:
    """A metric that every head has."""
    return logits[:, 0] - logits[:, 1:2].sum(1)


@built
def test_a_replay_says_what_the_run_said(
    name: str, change: str, changes: Mapping[str, Any]
) -> None:
    model = wb.load(hf(name, **changes), dtype=torch.float64)
    plan = [wb.Intervention("blocks.0.attn.hook_z", Scale(0.5))]
    lazy, eager = (wb.run(model, ROWS, plan=plan, record=which) for which in ("all", model.sites))
    assert len(lazy.activations) < len(eager.activations)
    for site, value in lazy.items():
        tiny.close(value, eager[site])


@families
def test_gradients_are_the_slopes_of_the_metric(name: str) -> None:
    model = wb.load(hf(name), dtype=torch.float64)
    batch, step = asked(model), 1e-6
    for site in ("hook_embed", "blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out"):
        slope = next(iter(wb.gradients(model, batch, site, first_columns).values()))
        push = tiny.normal(*slope.shape, dtype=torch.float64)

        def moved(by: float, site: str = site, push: Tensor = push) -> Tensor:
            plan = [wb.Intervention(site, lambda value: value + by * push)]
            return first_columns(wb.run(model, batch, plan=plan).answer_logits)

        change = (moved(step) - moved(-step)) / (2 * step)
        real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
        expected = (slope * push * real[:, :, None]).sum((1, 2))
        pads = (slope * ~real[:, :, None]).abs().max()
        assert pads == 0
        tiny.close(change, expected, 1e-5)


@families
@pytest.mark.parametrize(
    "grid",
    [
        Grid("blocks.*.hook_resid_pre", ("layer", "pos"), Zero()),
        Grid("blocks.*.attn.hook_z", ("layer", "head"), Zero()),
        Grid("blocks.*.attn.hook_pattern", ("layer", "pos"), Scale(0.5), only={"head": 0}),
    ],
    ids=["stream", "heads", "patterns"],
)
def test_a_sweep_is_a_loop_of_runs(name: str, grid: Grid) -> None:
    model = model_of(name)
    batch = asked(model)
    swept = wb.sweep(model, batch, grid, first_columns, verify=0)
    cells = swept.changed.flatten(0, -2)
    for cell, value in zip(spread(grid, model, batch, {}, None).cells, cells, strict=True):
        alone = wb.run(model, batch, plan=[cell])
        tiny.close(first_columns(alone.answer_logits), value, 1e-5)


@families
def test_patching_with_another_prompt_is_a_loop_of_runs(name: str) -> None:
    model = model_of(name)
    batch, source = asked(model), asked(model, [[*row[:2], 9, *row[3:]] for row in ROWS])
    grid = Grid("blocks.*.hook_resid_pre", ("layer", "pos"), only={"pos": (0, 1, 2, 3)})
    swept = wb.sweep(model, batch, grid, first_columns, source=source, verify=0)
    given = wb.run(model, source, record="blocks.*.hook_resid_pre")
    for layer in range(model.sizes.n_layers):
        site = f"blocks.{layer}.hook_resid_pre"
        for pos in range(4):
            plan = [wb.Intervention(site, wb.ops.set(given[site]), positions=pos)]
            alone = wb.run(model, batch, plan=plan)
            tiny.close(first_columns(alone.answer_logits), swept.changed[layer, pos], 1e-5)


@encoders
def test_an_encoder_writes_nothing(name: str) -> None:
    model = model_of(name)
    with pytest.raises(OptionError, match="causal: one that reads both ways says no next token"):
        wb.generate(model, [[1, 2, 3]], max_new_tokens=2)


@encoders
def test_it_reads_both_ways(name: str) -> None:
    model = model_of(name)
    ids = tiny.tokens(1, 6)
    changed = ids.clone()
    changed[0, -1] = 3
    moved = wb.run(model, changed).logits[0, 0] - wb.run(model, ids).logits[0, 0]
    assert moved.abs().max() > 1e-4


@encoders
def test_batches_by_length_say_the_same(name: str) -> None:
    model = model_of(name)
    together, apart = wb.run(model, ROWS), wb.run(model, ROWS, max_tokens=6)
    for row, ids in enumerate(ROWS):
        tiny.close(together.logits[row, : len(ids)], apart.logits[row, : len(ids)], 1e-5)
