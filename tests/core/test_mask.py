"""An attention mask says which tokens are pads, wherever they stand."""

from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.data import batch_of
from workbench.core.errors import OptionError, PromptError, ShapeError

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
IDS = torch.tensor([[9, 1, 2, 9, 3, 4], [5, 6, 7, 8, 10, 11]])
MASK = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]])


@kinds
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_masked_tokens_are_as_if_they_were_not_there(kind: str, dtype: torch.dtype) -> None:
    model = tiny.model(kind, torch.float64)
    for record in ("all", "blocks.*.hook_resid_post"):
        masked = wb.run(model, IDS, attention_mask=MASK.to(dtype), record=record)
        alone = wb.run(model, [[1, 2, 3, 4]], record=record)
        tiny.close(masked.logits[0, [1, 2, 4, 5]], alone.logits[0])
        tiny.close(masked.answer_logits[0], alone.answer_logits[0])
        stream = "blocks.1.hook_resid_post"
        tiny.close(masked[stream][0, [1, 2, 4, 5]], alone[stream][0])
        tiny.close(masked.logits[1], wb.run(model, IDS[1]).logits[0])


@kinds
def test_it_masks_as_transformers_does(kind: str) -> None:
    theirs = tiny.hf(kind)
    ids, mask = IDS, torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    ours = wb.run(wb.load(theirs), ids, attention_mask=mask).logits
    tiny.close(ours[mask == 1], expected[mask == 1], 1e-4)


def test_a_mask_of_ones_is_none() -> None:
    ones = wb.run(tiny.model(), IDS, attention_mask=torch.ones_like(IDS))
    assert ones.batch.real is None
    assert tiny.same_bytes(ones.logits, wb.run(tiny.model(), IDS).logits)


def test_a_plan_counts_the_tokens_that_are_not_masked() -> None:
    plan = [wb.Intervention("hook_embed", wb.ops.zero(), positions=2, rows=0)]
    trace = wb.run(tiny.model(), IDS, plan=plan, attention_mask=MASK, record="hook_embed")
    zero = (trace["hook_embed"] == 0).all(-1)
    assert zero[0].tolist() == [False, False, False, False, True, False]


@pytest.mark.parametrize("positions", [0, 2, -1, [1, 3]])
def test_logits_are_read_at_content_positions(positions: Any) -> None:
    model = tiny.model(dtype=torch.float64)
    some = wb.run(model, IDS, attention_mask=MASK, positions=positions).logits
    for row, ids in enumerate(([1, 2, 3, 4], IDS[1].tolist())):
        tiny.close(some[row], wb.run(model, [ids], positions=positions).logits[0])


def test_keys_are_content_positions_between_pads_too() -> None:
    model, site = tiny.model(dtype=torch.float64), "blocks.1.attn.hook_pattern"
    cuts = [wb.Intervention(site, wb.ops.zero(), positions=-1, keys=key) for key in (0, 1, 2)]
    alone = [wb.run(model, [[1, 2, 3, 4]], plan=[cut]).answer_logits[0] for cut in cuts]
    for cut, expected in zip(cuts, alone, strict=True):
        masked = wb.run(model, IDS, plan=[cut], attention_mask=MASK)
        tiny.close(masked.answer_logits[0], expected)
    contrast = wb.Contrast([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 9, 8]], 3, 7)
    metric = wb.metrics.logit(contrast)
    swept = wb.sweep(model, batch_of(model, IDS, attention_mask=MASK), cuts, metric)
    tiny.close(swept.changed[:, 0], torch.stack(alone)[:, 3])
    fixed = wb.sweep(
        model,
        batch_of(model, IDS, attention_mask=MASK),
        [wb.Intervention("blocks.2.hook_resid_pre", wb.ops.scale(0.5), positions=-1)],
        metric,
        plan=cuts[:1],
    )
    assert fixed.checks[-1].name == "residual"
    assert fixed.checks[-1].value < 1e-10


def test_the_estimate_takes_it_too() -> None:
    told = wb.estimate(tiny.model(), IDS, attention_mask=MASK)
    assert told.logits == IDS.numel() * 258 * 4


@pytest.mark.parametrize(
    ("prompt", "mask", "error", "message"),
    [
        (IDS, MASK[:, 1:], ShapeError, r"attention_mask: expected the shape of the ids"),
        ([[1, 2], [3]], torch.ones(2, 2), ShapeError, r"for 2 rows of \[1, 2\] tokens"),
        (IDS, MASK * 2, OptionError, "attention_mask must be made of zeros and ones"),
        (IDS, MASK * 0, PromptError, r"hides every token of the rows \[0, 1\]"),
    ],
    ids=["short", "ragged", "two", "empty"],
)
def test_a_mask_that_does_not_fit_is_refused(
    prompt: Any, mask: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wb.run(tiny.model(), prompt, attention_mask=mask)


def test_a_batch_brings_its_own() -> None:
    with pytest.raises(OptionError, match="attention_mask must be left out: a Batch has its own"):
        wb.run(tiny.model(), batch_of(tiny.model(), IDS), attention_mask=MASK)
