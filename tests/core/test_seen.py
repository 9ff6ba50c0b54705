"""A mask by query and key takes away what may be seen, in every kernel, batch and pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.cache import KeptKeys, SuffixCache
from workbench.core.data import batch_of
from workbench.core.errors import OptionError, ShapeError
from workbench.core.tap import UNTAPPED

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
IDS = tiny.tokens(2, 9)
TRIL = torch.ones(9, 9, dtype=torch.bool).tril()
PACKED = torch.block_diag(*(torch.ones(n, n) for n in (4, 3, 2))).bool()
HOLES = (tiny.tokens(2, 1, 9, 9, seed=3, high=3) > 0) | torch.eye(9, dtype=torch.bool)


def additive(mask: Tensor, dtype: torch.dtype = torch.float32, low: float | None = None) -> Tensor:
    hidden = torch.finfo(dtype).min if low is None else low
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, hidden)


def moved(site: str, by: Tensor) -> wb.Intervention:
    """Adds a tensor by column; an operator would read it by position."""
    return wb.Intervention(site, lambda value: value + by)


# --- the same as transformers -------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("mask", [PACKED[None, None], HOLES, HOLES[:1]], ids=["packed", "two", "1"])
def test_it_masks_as_transformers_does(kind: str, mask: Tensor) -> None:
    theirs = tiny.hf(kind)
    seen = (mask & TRIL).expand(2, 1, 9, 9)
    with torch.no_grad():
        expected = theirs(IDS, attention_mask=additive(seen), output_attentions=True)
    ours = wb.load(theirs)
    for given in (mask, additive(mask), additive(mask, low=float("-inf"))):
        fused = wb.run(ours, IDS, attention_mask=given)
        tiny.close(fused.logits, expected.logits, 1e-4)
    opened = wb.run(ours, IDS, attention_mask=mask, record="blocks.*.attn.hook_pattern")
    tiny.close(opened.logits, expected.logits, 1e-4)
    for pattern, weights in zip(opened.values(), expected.attentions, strict=True):
        tiny.close(pattern, weights, 1e-5)


def test_packed_sequences_are_as_if_each_were_alone_where_positions_are_relative() -> None:
    model = tiny.model("llama", torch.float64)
    packed = wb.run(model, IDS, attention_mask=PACKED[None, None], record="all")
    for first, last in ((0, 4), (4, 7), (7, 9)):
        alone = wb.run(model, IDS[:, first:last], record="all")
        # Angles are float32, as transformers has them: a shift is a shift to that precision.
        tiny.close(packed.logits[:, first:last], alone.logits, 1e-5)
        site = "blocks.1.attn.hook_pattern"
        tiny.close(packed[site][:, :, first:last, first:last], alone[site], 1e-5)


# --- what a mask means --------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_of_all_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    model = tiny.model(kind, dtype)
    plain = wb.run(model, IDS)
    for shape in ((1, 1, 9, 9), (2, 1, 9, 9)):
        full = wb.run(model, IDS, attention_mask=torch.ones(shape, dtype=torch.bool))
        assert full.batch.seen is None
        assert tiny.same_bytes(full.logits, plain.logits)


@kinds
def test_nobody_looks_ahead_whatever_the_mask_says(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    wide, narrow = (
        wb.run(model, IDS, attention_mask=mask, record="blocks.0.attn.hook_attn_scores")
        for mask in (HOLES, HOLES & TRIL)
    )
    assert tiny.same_bytes(wide.logits, narrow.logits)
    scores = wide["blocks.0.attn.hook_attn_scores"]
    assert bool((scores[:, :, ~TRIL] == float("-inf")).all())


@kinds
def test_open_and_fused_attention_see_the_same(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    heads = tiny.tokens(1, model.sizes.n_heads, 9, 9, seed=5, high=2) > 0  # some see nobody
    fused = wb.run(model, IDS, attention_mask=heads)
    opened = wb.run(model, IDS, attention_mask=heads, record="blocks.*.attn.*")
    tiny.close(fused.logits, opened.logits)
    lazy = wb.run(model, IDS, attention_mask=heads, record="all")
    for site, value in opened.items():
        tiny.close(lazy[site], value)


@kinds
def test_a_token_that_sees_nobody_reads_nothing(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    mask[:, :, 5] = False
    for record in ("blocks.*.attn.hook_[zp]*", "blocks.*.attn.hook_z"):
        trace = wb.run(model, IDS, attention_mask=mask, record=record)
        for site, value in trace.items():
            value = value.transpose(1, 2) if site.axes[-1] == "key" else value  # noqa: PLW2901
            assert not value[:, 5].any()
            assert bool(value[:, 4].any())


@kinds
def test_a_head_of_its_own_mask_is_a_pattern_cut_there(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    mask = torch.ones(1, model.sizes.n_heads, 9, 9, dtype=torch.bool)
    mask[:, 1, 6, :3] = False
    masked = wb.run(model, IDS, attention_mask=mask, record="blocks.0.attn.hook_pattern")
    pattern = wb.run(model, IDS, record="blocks.0.attn.hook_pattern")["blocks.0.attn.hook_pattern"]
    left = pattern[:, 1, 6].clone()
    left[:, :3] = 0
    got = masked["blocks.0.attn.hook_pattern"]
    tiny.close(got[:, 1, 6], left / left.sum(-1, keepdim=True))
    tiny.close(got[:, 0], pattern[:, 0])


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_stay_hidden(kind: str, side: Any) -> None:
    model = tiny.model(kind, torch.float64)
    rows = [IDS[0].tolist(), IDS[1, :5].tolist()]
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, 8, 2] = False
    trace = wb.run(model, rows, attention_mask=mask, padding_side=side)
    tiny.close(trace.answer_logits[1], wb.run(model, [rows[1]]).answer_logits[0])
    alone = wb.run(model, [rows[0]], attention_mask=mask[:1]).answer_logits[0]
    tiny.close(trace.answer_logits[0], alone)
    assert not torch.allclose(alone, wb.run(model, [rows[0]]).answer_logits[0])


# --- every kind of pass -------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("mask", [HOLES, HOLES[:1]], ids=["two", "one"])
def test_batches_by_length_keep_it(kind: str, mask: Tensor) -> None:
    model = tiny.model(kind, torch.float64)
    for side in ("left", "right"):
        rows = [IDS[0].tolist(), IDS[1, :5].tolist()]
        options: dict[str, Any] = {"attention_mask": mask, "padding_side": side, "record": "all"}
        parts, whole = (wb.run(model, rows, **options, max_tokens=n) for n in (9, None))
        real = whole.batch.real
        tiny.close(parts.logits[real], whole.logits[real])
        site = "blocks.1.attn.hook_pattern"
        ours, theirs = (one[site].transpose(1, 2)[real] for one in (parts, whole))
        tiny.close(ours, theirs)


@kinds
def test_the_rest_of_a_pass_has_its_part_of_the_mask(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    batch = batch_of(model, IDS, attention_mask=HOLES)
    resid, kept = model.embed(batch, UNTAPPED), KeptKeys(padded=False)
    whole = model.layers(resid, batch, UNTAPPED, cache=kept)
    for column in (1, 4, 8):
        part = batch.since(column).repeat(2)
        cache = SuffixCache(kept, batch.real, column, 2)
        rest = model.layers(resid[:, column:].repeat(2, 1, 1), part, UNTAPPED, cache=cache)
        tiny.close(rest, whole[:, column:].repeat(2, 1, 1))
    middle = batch.columns(2, 7).columns(1, 3)
    assert middle.seen is not None
    assert torch.equal(middle.seen, HOLES[:, :, 3:5, :5])


@kinds
def test_a_sweep_under_a_mask_is_one_run_per_cell(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    contrast = wb.Contrast(IDS.tolist(), IDS.tolist(), 3, 7)
    cells = [
        wb.Intervention(f"blocks.{layer}.hook_resid_pre", wb.ops.scale(0.5), positions=position)
        for layer in range(3)
        for position in (0, 4, 8)
    ]
    batch = batch_of(model, IDS, attention_mask=HOLES)
    swept = wb.sweep(model, batch, cells, wb.metrics.logit(contrast))
    for cell, changed in zip(cells, swept.changed, strict=True):
        alone = wb.run(model, IDS, plan=[cell], attention_mask=HOLES)
        tiny.close(changed, alone.answer_logits[:, 3])


def test_prompts_that_are_masked_in_other_ways_part_at_once() -> None:
    model = tiny.model("llama", torch.float64)
    contrast = wb.Contrast(IDS.tolist(), IDS.tolist(), 3, 7)
    masked = batch_of(model, IDS, attention_mask=HOLES)
    grid = wb.Grid("blocks.1.hook_resid_pre", ("pos",))
    swept = wb.sweep(model, masked, grid, wb.metrics.logit(contrast), source=IDS)
    assert bool(swept.effect.any())


@kinds
def test_gradients_take_either_mask(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    metric = wb.metrics.logit(wb.Contrast(IDS.tolist(), IDS.tolist(), 3, 7))
    site, step = "blocks.0.hook_resid_pre", 1e-6
    pads = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1, 1], [1] * 9])
    for mask in (HOLES, pads):
        slope = wb.gradients(model, IDS, site, metric, attention_mask=mask)
        (value,) = slope.values()
        move = tiny.normal(*value.shape, dtype=torch.float64)
        up, down = (
            metric(wb.run(model, IDS, plan=[moved(site, by * move)], attention_mask=mask))
            for by in (step, -step)
        )
        numeric = (up - down) / (2 * step)
        if mask is pads:
            assert not value[0, [0, 3]].any()
            move[0, [0, 3]] = 0
        tiny.close((value * move).sum((1, 2)), numeric, 1e-6)
        pushed = wb.jvp(model, IDS, {site: move}, metric=metric, logits=True, attention_mask=mask)
        assert pushed.metric is not None
        tiny.close(pushed.metric, numeric, 1e-6)
        pulled = wb.vjp(
            model, IDS, [site], logits=torch.ones(2, 9, 258).double(), attention_mask=mask
        )
        assert pushed.logits is not None
        (slopes,) = pulled.values()
        tiny.close((slopes * move).sum(), pushed.logits.sum(), 1e-8)


def test_gradients_are_finite_where_a_token_sees_nobody() -> None:
    model, mask = tiny.model("gpt2", torch.float64), torch.ones(1, 1, 9, 9, dtype=torch.bool)
    mask[:, :, 5] = False
    metric = wb.metrics.logit(wb.Contrast(IDS.tolist(), IDS.tolist(), 3, 7))
    sites = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_pattern"]
    opened = wb.gradients(model, IDS, sites, metric, attention_mask=mask)
    fused = wb.gradients(model, IDS, sites[0], metric, attention_mask=mask)
    tiny.close(opened[wb.Site.parse(sites[0])], fused[wb.Site.parse(sites[0])])


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            HOLES[:, :, 1:],
            ShapeError,
            r"expected \(2 or 1, 4 or 1, 9, 9\) \(batch head query key\)",
        ),
        (HOLES.repeat(2, 1, 1, 1), ShapeError, r"got \(4, 1, 9, 9\)"),
        (HOLES.repeat(1, 3, 1, 1), ShapeError, r"got \(2, 3, 9, 9\)"),
        (HOLES.long(), OptionError, "True where a key is seen, or 0 there and -inf elsewhere"),
        (HOLES.float(), OptionError, r"-inf elsewhere, got \[1\.0\]"),
        (additive(HOLES, low=float("nan")), OptionError, "nan"),
        (HOLES[0, 0, 0], ShapeError, r"\(batch pos\), or \(batch head query key\)"),
    ],
    ids=["queries", "rows", "heads", "numbers", "ones", "nan", "flat"],
)
def test_what_is_no_mask_is_refused(mask: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wb.run(tiny.model(), IDS, attention_mask=mask)


def test_a_pass_with_other_keys_than_its_mask_s_is_refused() -> None:
    model = tiny.model()
    batch = batch_of(model, IDS, attention_mask=HOLES)
    kept = KeptKeys(padded=False)
    resid = model.embed(batch, UNTAPPED)
    model.layers(resid, batch, UNTAPPED, cache=kept)
    with pytest.raises(ShapeError, match=r"Batch\.seen: expected \(9, 13\) \(query key\)"):
        model.layers(resid, batch, UNTAPPED, cache=SuffixCache(kept, None, 4, 1))


def test_a_mask_the_caller_changes_later_is_a_copy() -> None:
    mask = HOLES.clone()
    batch = batch_of(tiny.model(), IDS, attention_mask=mask)
    mask[:] = False
    assert batch.seen is not None
    assert torch.equal(batch.seen, HOLES)


def test_gradients_refuse_a_mask_beside_a_batch() -> None:
    metric = wb.metrics.logit(wb.Contrast(IDS.tolist(), IDS.tolist(), 3, 7))
    batch = batch_of(tiny.model(), IDS)
    with pytest.raises(OptionError, match="attention_mask must be left out"):
        wb.gradients(tiny.model(), batch, "hook_embed", metric, attention_mask=HOLES)
