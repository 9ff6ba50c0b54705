"""A run in batches by length is the run of one batch: same rows, same shapes, same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.buckets import bucket_of, buckets_of
from workbench.core.data import batch_of
from workbench.core.errors import (
    CancelledError,
    EmptySelectionError,
    NeverActedError,
    OptionError,
    ShapeError,
)
from workbench.core.plan import Plan
from workbench.core.program import compile_plan
from workbench.core.request import request_of

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
sides = pytest.mark.parametrize("side", ["left", "right"])
LENGTHS = [5, 1, 9, 9, 2, 5, 3]
ROWS = [tiny.tokens(length, seed=i).tolist() for i, length in enumerate(LENGTHS)]
EACH = tiny.normal(len(ROWS), 1, 24, dtype=torch.float64)
PLANS: dict[str, list[wb.Intervention]] = {
    "none": [],
    "everywhere": [wb.Intervention("blocks.*.hook_mlp_out", wb.ops.scale(0.5))],
    "per row": [
        wb.Intervention("blocks.0.hook_resid_pre", wb.ops.add(tiny.normal(24, seed=i)), rows=i)
        for i in range(len(ROWS))
    ],
    "some rows, out of order": [
        wb.Intervention("blocks.1.attn.hook_z", wb.ops.zero(), rows=[6, 0, 3], heads=1)
    ],
    "an operand with a row for each": [
        wb.Intervention("blocks.1.hook_resid_mid", wb.ops.set(EACH))
    ],
    "one for each of some rows": [
        wb.Intervention("hook_embed", wb.ops.add(EACH[:3]), rows=[4, 2, 1], strength=0.5)
    ],
    "by position": [
        wb.Intervention("hook_embed", wb.ops.add(tiny.normal(9, 24, dtype=torch.float64))),
        wb.Intervention("blocks.1.hook_resid_pre", wb.ops.zero(), positions=[1, -1]),
    ],
    "keys": [
        wb.Intervention("blocks.1.attn.hook_pattern", wb.ops.zero(), positions=-1, keys=0),
        wb.Intervention("blocks.0.attn.hook_attn_scores", wb.ops.scale(0.5), rows=[2, 5]),
    ],
    "after the blocks": [wb.Intervention("ln_final.hook_normalized", wb.ops.scale(2.0), rows=3)],
}


def same(one: wb.Trace, other: wb.Trace) -> None:
    """Asserts that all that `other` gives at tokens is given by `one`, and 0 at its pads."""
    real = other.batch.real
    real = torch.ones_like(other.batch.tokens, dtype=torch.bool) if real is None else real
    assert one.sites == other.sites
    assert torch.equal(one.batch.tokens, other.batch.tokens)
    for (site, value), (twin, expected) in zip(one.items(), other.items(), strict=True):
        assert site == twin
        assert value.shape == expected.shape
        ours, theirs = (
            one.transpose(1, 2) if site.axes[-1] == "key" else one for one in (value, expected)
        )
        tiny.close(ours[real], theirs[real])
        nothing = ours[~real]
        masked = float("-inf") if site.short == "attn.hook_attn_scores" else 0.0
        assert bool((nothing == masked).all())


def same_logits(one: Tensor, other: Tensor, real: Tensor | None) -> None:
    assert one.shape == other.shape
    if real is None:
        tiny.close(one, other)
    else:
        tiny.close(one[real], other[real])
        assert not one[~real].any()


@kinds
@sides
@pytest.mark.parametrize("record", ["all", "*"])
@pytest.mark.parametrize("plan", PLANS)
def test_batches_by_length_are_one_batch(kind: str, side: Any, record: str, plan: str) -> None:
    model, change = tiny.model(kind, torch.float64), PLANS[plan]
    options: dict[str, Any] = {"plan": change, "record": record, "padding_side": side}
    with tiny.unchecked():
        parts, whole = (wb.run(model, ROWS, **options, max_tokens=n) for n in (100, None))
        same(parts, whole)
    same_logits(parts.logits, whole.logits, whole.batch.real)
    tiny.close(parts.answer_logits, whole.answer_logits)
    for one, other in zip(parts.receipts, whole.receipts, strict=True):
        assert (one.intervention, one.tokens) == (other.intervention, other.tokens)
        assert one.change == pytest.approx(other.change, rel=1e-10)
    assert parts.plan is not None
    assert parts.replayable


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    max_tokens=st.integers(1, 60),
    side=st.sampled_from(["left", "right"]),
)
@settings(max_examples=25)
def test_any_lengths_and_budget(lengths: list[int], max_tokens: int, side: Any) -> None:
    model = tiny.model("llama", torch.float64)
    rows = [tiny.tokens(length, seed=i).tolist() for i, length in enumerate(lengths)]
    options: dict[str, Any] = {"record": "blocks.1.attn.*", "padding_side": side}
    parts, whole = (wb.run(model, rows, **options, max_tokens=n) for n in (max_tokens, None))
    same(parts, whole)
    same_logits(parts.logits, whole.logits, whole.batch.real)


@kinds
@sides
@pytest.mark.parametrize("positions", [None, "last", 0, [-1, 0]])
@pytest.mark.parametrize("vocabulary", [None, [3, 1]])
def test_logits_may_be_restricted(kind: str, side: Any, positions: Any, vocabulary: Any) -> None:
    model = tiny.model(kind, torch.float64)
    options: dict[str, Any] = {"positions": positions, "vocabulary": vocabulary}
    parts, whole = (
        wb.run(model, ROWS, padding_side=side, **options, max_tokens=n) for n in (12, None)
    )
    same_logits(parts.logits, whole.logits, whole.batch.real if positions is None else None)
    if positions != 0:
        tiny.close(parts.answer_logits, whole.answer_logits)


def test_tokens_may_be_masked_anywhere() -> None:
    model, ids = tiny.model("gpt2", torch.float64), tiny.tokens(5, 8)
    mask = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 0]] * 2 + [[1] * 8] * 2 + [[0] * 7 + [1]])
    plan = [wb.Intervention("hook_embed", wb.ops.zero(), positions=1, optional=True)]
    options: dict[str, Any] = {"plan": plan, "record": "*", "attention_mask": mask}
    parts, whole = (wb.run(model, ids, **options, max_tokens=n) for n in (8, None))
    same(parts, whole)
    same_logits(parts.logits, whole.logits, whole.batch.real)
    last = wb.run(model, ids, **options, max_tokens=8, positions=[-1, 0])
    tiny.close(last.logits, wb.run(model, ids, **options, positions=[-1, 0]).logits)


@sides
@pytest.mark.parametrize("record", ["all", "blocks.1.hook_resid_post"])
def test_a_run_may_start_at_a_block(side: Any, record: str) -> None:
    model = tiny.model("llama", torch.float64)
    full = wb.run(model, ROWS, padding_side=side, record="blocks.0.hook_resid_post")
    start = (1, full["blocks.0.hook_resid_post"])
    options: dict[str, Any] = {"record": record, "padding_side": side, "start": start}
    parts, whole = (wb.run(model, ROWS, **options, max_tokens=n) for n in (12, None))
    same(parts, whole)
    tiny.close(parts.answer_logits, full.answer_logits)


@pytest.mark.parametrize("record", ["all", "blocks.*.attn.hook_*"])
def test_what_is_recorded_may_lie_in_files(tmp_path: Path, record: str) -> None:
    model = tiny.model("llama", torch.float64)
    spilled = wb.run(model, ROWS, record=record, max_tokens=12, spill=tmp_path)
    kept = wb.run(model, ROWS, record=record, max_tokens=12)
    assert list(spilled) == list(kept)
    for site, value in kept.items():
        tiny.close(spilled[site], value)  # a mapped stream stands elsewhere in a line of the cache
        if record != "all" or site.short == "hook_resid_post":
            assert tiny.same_bytes(spilled[site], value)


def test_without_logits_every_batch_ends_at_the_last_site() -> None:
    model, site = tiny.model("llama", torch.float64), "blocks.0.hook_resid_post"
    parts = wb.run(model, ROWS, record=site, logits=False, max_tokens=12)
    same(parts, wb.run(model, ROWS, record=site, logits=False))
    cut = wb.Intervention("blocks.2.hook_mlp_out", wb.ops.zero())
    with pytest.raises(NeverActedError, match="the run ended before block 1"):
        wb.run(model, ROWS, plan=[cut], record=site, logits=False, max_tokens=12)


def test_one_batch_of_equal_lengths_is_the_run_to_the_bit() -> None:
    ids = tiny.tokens(4, 6)
    parts, whole = (wb.run(tiny.model(), ids, record="*", max_tokens=n) for n in (24, None))
    assert tiny.same_bytes(parts.logits, whole.logits)
    for site in whole:
        assert tiny.same_bytes(parts[site], whole[site])


def test_every_token_is_in_one_batch_and_few_pads_are() -> None:
    model = tiny.model()
    batch = batch_of(model, ROWS, padding_side="left")
    asked = request_of(model, batch, compile_plan(Plan(), model, len(ROWS)))
    parts = buckets_of(asked, 18, own=False)
    assert sorted(row for part in parts for row in part.bucket.rows) == list(range(len(ROWS)))
    shapes = [tuple(part.bucket.batch.tokens.shape) for part in parts]
    assert shapes == [(1, 1), (1, 2), (1, 3), (2, 5), (2, 9)]
    for part in parts:
        for place, row in enumerate(part.bucket.rows):
            assert part.bucket.batch.tokens[place].tolist() == ROWS[row]


def test_a_continued_batch_keeps_its_positions() -> None:
    whole = batch_of(tiny.model(), ROWS).columns(1)
    bucket = bucket_of(whole, [5, 2])
    assert bucket.batch.start.tolist() == [1, 1]
    assert bucket.batch.prompt.tolist() == [5, 9]
    assert bucket.batch.positions[0].tolist() == [1, 2, 3, 4, 4, 4, 4, 4]
    said = bucket.batch.said
    assert said is not None
    assert said[0].tolist() == ROWS[5] + [-1] * 4


def test_an_intervention_that_meets_no_row_of_a_batch_is_not_missed() -> None:
    one = wb.Intervention("hook_embed", wb.ops.zero(), rows=2, positions=8)
    receipt = wb.run(tiny.model(), ROWS, plan=[one], max_tokens=12).receipts[0]
    assert (receipt.acted, receipt.tokens) == (1, 1)
    beyond = wb.Intervention("hook_embed", wb.ops.zero(), positions=9)
    with pytest.raises(EmptySelectionError, match=r"positions \[9\] are beyond the 9 tokens"):
        wb.run(tiny.model(), ROWS, plan=[beyond], max_tokens=12)


def test_a_receipt_counts_the_sites_of_every_batch() -> None:
    model, plan = tiny.model(), [wb.Intervention("blocks.*.hook_mlp_out", wb.ops.zero())]
    assert wb.run(model, ROWS, plan=plan).receipts[0].acted == 3
    assert wb.run(model, ROWS, plan=plan, max_tokens=18).receipts[0].acted == 5 * 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_tokens": 0}, OptionError, "max_tokens must be 1 or more"),
        ({"max_tokens": True}, OptionError, "max_tokens must be a whole number"),
        ({"tap": tiny.Spy()}, OptionError, "max_tokens must be left out with a tap of your own"),
        (
            {"plan": [wb.Intervention("hook_embed", lambda x: 2 * x)]},
            OptionError,
            "max_tokens must be left out with a bare function",
        ),
        (
            {"plan": [wb.Intervention("hook_embed", wb.ops.add(EACH[:2]))]},
            ShapeError,
            r"hook_embed: expected 1 or 7 rows",
        ),
        ({"positions": 1}, OptionError, "positions must be below 1"),
    ],
    ids=["zero", "truth", "tap", "function", "rows", "positions"],
)
def test_what_batches_cannot_do_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    limits: dict[str, Any] = {"max_tokens": 12, **options}
    with pytest.raises(error, match=message):
        wb.run(tiny.model(), ROWS, **limits)


@pytest.mark.parametrize("width", [1, 9])
def test_an_operand_over_keys_is_cut_to_each_batch(width: int) -> None:
    model = tiny.model("llama", torch.float64)
    dose = tiny.normal(9, width, dtype=torch.float64)
    plan = [wb.Intervention("blocks.1.attn.hook_attn_scores", wb.ops.add(dose))]
    parts, whole = (
        wb.run(model, ROWS, plan=plan, record="blocks.1.attn.*", max_tokens=n) for n in (12, None)
    )
    same(parts, whole)
    if width > 1:
        for n in (12, None):
            with pytest.raises(ShapeError, match="no pads on the left"):
                wb.run(model, ROWS, plan=plan, padding_side="left", max_tokens=n)
        short = [wb.Intervention("blocks.1.attn.hook_pattern", wb.ops.set(dose[:, :5]))]
        with pytest.raises(ShapeError, match="one number for all keys, or 9"):
            wb.run(model, ROWS, plan=short, max_tokens=12)


def test_a_check_may_cancel_any_batch() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise CancelledError("enough")

    with pytest.raises(CancelledError, match="enough"):
        wb.run(tiny.model(), ROWS, max_tokens=12, check=check)


def test_a_trace_in_batches_gives_new_tensors_and_one_block_at_a_time() -> None:
    trace = wb.run(tiny.model(), ROWS, record="all", max_tokens=12)
    some = trace.read(["blocks.1.attn.hook_z", "blocks.1.hook_resid_post"])
    assert list(map(str, some)) == ["blocks.1.attn.hook_z", "blocks.1.hook_resid_post"]
    assert trace["blocks.1.hook_resid_post"] is not trace["blocks.1.hook_resid_post"]
    assert len(trace) == len(tiny.model().sites)
    assert "blocks.0.hook_resid_pre" in trace
    assert repr(trace).startswith("Trace(")
