"""A sweep equals one run per cell, whatever its batches, order, rows and fixed plan."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import EmptySelectionError, NeverActedError, UnknownNameError

CONTRAST = wb.Contrast(
    clean=["abcab", "the cat sat on"],
    corrupt=["xbcxb", "the dog sat on"],
    target=["c", " "],
    foil=["d", "x"],
)
METRIC = wb.metrics.logit_difference(CONTRAST)


@pytest.fixture(scope="module", params=tiny.KINDS)
def model(request: pytest.FixtureRequest) -> wb.Model:
    """A tiny model in float64."""
    return tiny.model(request.param, torch.float64)


def cells(model: wb.Model) -> list[wb.Intervention | list[wb.Intervention]]:
    """Cells that start at every kind of place: embedding, blocks, after them, and two at once."""
    heads = [
        wb.Intervention(f"blocks.{layer}.attn.hook_z", wb.ops.zero(), heads=[head])
        for layer in (2, 0, 1)
        for head in (0, 1)
    ]
    vector = tiny.normal(model.sizes.d_model, dtype=torch.float64)
    early = wb.Intervention("hook_embed", wb.ops.add(vector), positions=[1])
    late = wb.Intervention("ln_final.hook_normalized", wb.ops.scale(0.5))
    one_row = wb.Intervention("blocks.1.hook_resid_mid", wb.ops.add(vector), rows=[1])
    return [*heads, early, late, one_row, [heads[0], heads[3]], [early, late]]


def by_hand(model: wb.Model, swept: Sequence, fixed: Sequence[wb.Intervention] = ()) -> Tensor:
    """One ordinary run per cell."""
    plans = [[cell] if isinstance(cell, wb.Intervention) else cell for cell in swept]
    return torch.stack(
        [METRIC(wb.run(model, CONTRAST.clean, plan=[*fixed, *plan])) for plan in plans]
    )


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_a_sweep_equals_one_run_per_cell(model: wb.Model, max_tokens: int) -> None:
    swept = cells(model)
    found = wb.sweep(model, CONTRAST.clean, swept, METRIC, max_tokens=max_tokens)
    torch.testing.assert_close(found.changed, by_hand(model, swept), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.base, METRIC(wb.run(model, CONTRAST.clean)))
    assert torch.equal(found.effects, found.changed - found.base)
    assert found.unit == "logits"


def test_the_order_of_cells_is_the_order_of_values(model: wb.Model) -> None:
    swept = cells(model)
    forward = wb.sweep(model, CONTRAST.clean, swept, METRIC).changed
    backward = wb.sweep(model, CONTRAST.clean, swept[::-1], METRIC).changed
    torch.testing.assert_close(forward, backward.flip(0), rtol=0, atol=1e-10)


def test_a_fixed_plan_holds_in_every_cell(model: wb.Model) -> None:
    vector = tiny.normal(model.sizes.d_model, seed=2, dtype=torch.float64)
    both = tiny.normal(2, 1, model.sizes.d_model, seed=3, dtype=torch.float64)
    fixed = [
        wb.Intervention("blocks.0.hook_resid_pre", wb.ops.project_out(vector)),
        wb.Intervention("blocks.2.hook_resid_post", wb.ops.add(vector), rows=[0]),
        wb.Intervention("blocks.1.hook_resid_mid", wb.ops.add(both)),  # a row's own vector
    ]
    swept = cells(model)
    found = wb.sweep(model, CONTRAST.clean, swept, METRIC, plan=fixed, max_tokens=100)
    torch.testing.assert_close(found.changed, by_hand(model, swept, fixed), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.base, METRIC(wb.run(model, CONTRAST.clean, plan=fixed)))


def test_cells_that_start_at_one_block_share_batches(model: wb.Model) -> None:
    swept = [
        wb.Intervention("blocks.1.attn.hook_z", wb.ops.zero(), heads=[0], positions=[position])
        for position in range(4)
    ]
    assert wb.sweep(model, CONTRAST.clean, swept, METRIC).waves == 1
    assert wb.sweep(model, CONTRAST.clean, swept, METRIC, max_tokens=1).waves == 4


SCOPES = [None, "prompt", 0, 3, -1, [2, 4], slice(1, 3), slice(-2, None), [13]]
SAID = [wb.scopes.after("at"), wb.scopes.tokens([98]), wb.scopes.every(2), wb.scopes.until("b")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_tokens", [40, 10_000])
def test_every_scope_and_place_equals_one_run_per_cell(
    model: wb.Model, side: str, max_tokens: int
) -> None:
    texts = [list(b"abcab"), list(b"the cat sat on")]
    batch = tiny.batch(texts, [len(text) for text in texts], side)
    by_position = tiny.normal(14, model.sizes.d_model, seed=4, dtype=torch.float64)
    width = model.sizes.d_head
    swept = [
        wb.Intervention(site, operator, positions=scope, optional=True)
        for scope in (*SCOPES, *SAID)
        for site, operator in (
            ("hook_embed", wb.ops.scale(0.5)),
            ("blocks.0.hook_resid_pre", wb.ops.set(by_position)),
            ("blocks.1.attn.hook_pattern", wb.ops.scale(0.5)),
            ("blocks.1.attn.hook_v", wb.ops.add(tiny.normal(width, dtype=torch.float64))),
            ("blocks.2.mlp.hook_post", wb.ops.zero()),
            ("hook_unembed", wb.ops.scale(2.0)),
            ("blocks.1.hook_resid_post", wb.ops.function(lambda x: x - x.mean(1, keepdim=True))),
        )
    ]
    found = wb.sweep(model, batch, swept, METRIC, max_tokens=max_tokens)
    alone = [METRIC(wb.run(model, batch, plan=[cell])) for cell in swept]
    torch.testing.assert_close(found.changed, torch.stack(alone), rtol=0, atol=1e-10)


def test_only_the_columns_from_the_first_change_on_are_run(model: wb.Model) -> None:
    contrast = wb.Contrast(clean="abcdefgh", corrupt="abcdefxh", target="c", foil="d")
    metric = wb.metrics.logit_difference(contrast)
    cells = [
        wb.Intervention(f"blocks.{layer}.hook_resid_pre", wb.ops.zero(), positions=[position])
        for layer in range(3)
        for position in (5, 7)
    ]
    swept = wb.sweep(model, contrast.clean, cells, metric)
    assert (swept.waves, swept.tokens) == (1, 6 * 3)
    beyond = wb.Intervention("hook_embed", wb.ops.zero(), positions=[9], optional=True)
    nothing = wb.sweep(model, contrast.clean, [beyond], metric)
    assert (nothing.waves, nothing.tokens) == (0, 0)
    assert torch.equal(nothing.effects, torch.zeros(1, 1, dtype=torch.float64))


def test_progress_is_told_and_may_cancel(model: wb.Model) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 2:
            raise InterruptedError

    swept = cells(model)
    with pytest.raises(InterruptedError):
        wb.sweep(model, CONTRAST.clean, swept, METRIC, max_tokens=1, progress=progress)
    assert seen == [(1, len(swept)), (2, len(swept))]


def test_what_cannot_be_swept_is_refused(model: wb.Model) -> None:
    with pytest.raises(EmptySelectionError, match="at least one cell"):
        wb.sweep(model, CONTRAST.clean, [], METRIC)
    with pytest.raises(UnknownNameError, match="Nearest of"):
        wb.sweep(
            model,
            CONTRAST.clean,
            [wb.Intervention("blocks.9.hook_resid_pre", wb.ops.zero())],
            METRIC,
        )
    beyond = wb.Intervention("blocks.0.hook_resid_pre", wb.ops.zero(), positions=[30])
    with pytest.raises((EmptySelectionError, NeverActedError), match="beyond"):
        wb.sweep(model, CONTRAST.clean, [beyond], METRIC)
