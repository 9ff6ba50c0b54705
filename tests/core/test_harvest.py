"""A row per text, as a run of that text alone gives it, whatever the batches."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import (
    CancelledError,
    EmptySelectionError,
    NeverActedError,
    NonFiniteError,
    NotRecordedError,
    OptionError,
    PromptError,
    UnknownNameError,
)
from workbench.core.harvest import harvest

SITE = wb.Site.parse("blocks.1.hook_resid_post")
TEXTS = ["abcdefgh", "xy", "hello", "zz top", "abc", "q w e r t", "no"]
kinds = pytest.mark.parametrize("kind", tiny.KINDS)


def alone(kind: str, ids: list[int], site: wb.Site = SITE) -> Tensor:
    """The activations of one text on its own."""
    model = tiny.model(kind, torch.float64)
    return wb.run(model, ids, record=[site])[site][0].flatten(1)


@kinds
@pytest.mark.parametrize("position", ["last", "first", "mean", 0, 1, -1, -2])
@pytest.mark.parametrize("max_tokens", [1, 12, 2048])
def test_a_row_is_that_of_a_single_run(kind: str, position: str | int, max_tokens: int) -> None:
    model = tiny.model(kind, torch.float64)
    found = harvest(model, TEXTS, SITE, position=position, max_tokens=max_tokens)  # pyright: ignore[reportArgumentType]
    at = {"last": -1, "first": 0}
    for row, text in zip(found.rows[SITE], TEXTS, strict=True):
        values = alone(kind, list(text.encode()))
        exact = values.mean(0) if position == "mean" else values[at.get(str(position), position)]  # pyright: ignore[reportArgumentType]
        tiny.close(row, exact)
    assert found.lengths == tuple(map(len, TEXTS))
    assert found.position == position


def test_the_mean_leaves_out_the_token_that_begins_a_text() -> None:
    ids = [[tiny.BOS, 65, 66], [65, 66, 67, 68], [tiny.BOS]]
    rows = harvest(tiny.model("llama", torch.float64), ids, SITE, position="mean").rows[SITE]
    tiny.close(rows[0], alone("llama", ids[0])[1:].mean(0))
    tiny.close(rows[1], alone("llama", ids[1]).mean(0))
    tiny.close(rows[2], alone("llama", ids[2])[0])  # nothing else to read


@kinds
def test_several_sites_and_heads_come_flat(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    found = harvest(model, TEXTS, ["blocks.*.attn.hook_z", "hook_embed"])
    assert next(iter(found.rows)) == wb.Site("hook_embed")
    assert len(found.rows) == 4
    for site, rows in found.rows.items():
        tiny.close(rows[0], alone(kind, list(TEXTS[0].encode()), site)[-1])


def test_the_forward_ends_after_the_last_block_asked_for() -> None:
    model, last = tiny.model(), wb.Site.parse("blocks.0.hook_resid_post")
    late = wb.Intervention("blocks.1.hook_mlp_out", wb.ops.zero())
    with pytest.raises(wb.WorkbenchError, match=r"ends at blocks\.0\.hook_resid_post"):
        harvest(model, TEXTS, last, plan=[late])
    first = wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero())
    with pytest.raises(wb.WorkbenchError, match="ends at hook_embed"):
        harvest(model, TEXTS, "hook_embed", plan=[first])


@kinds
def test_a_plan_is_carried_out(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    plan = [wb.Intervention("blocks.0.hook_resid_pre", wb.ops.scale(2.0), positions=-1)]
    rows = harvest(model, TEXTS, SITE, plan=plan, max_tokens=12).rows[SITE]
    for row, text in zip(rows, TEXTS, strict=True):
        tiny.close(row, wb.run(model, text, plan=plan, record=[SITE])[SITE][0, -1])


def test_a_plan_may_be_an_iterator() -> None:
    plan = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero())]
    one = harvest(tiny.model(), TEXTS, SITE, plan=iter(plan), max_tokens=1).rows[SITE]
    assert torch.equal(one, harvest(tiny.model(), TEXTS, SITE, plan=plan, max_tokens=1).rows[SITE])


def test_rows_of_a_plan_are_refused_for_texts_are_batched_by_length() -> None:
    plan = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero(), rows=0)]
    with pytest.raises(OptionError, match="plan must be without rows"):
        harvest(tiny.model(), TEXTS, SITE, plan=plan)


def test_batches_stay_within_their_budget_and_are_told() -> None:
    seen: list[tuple[int, int]] = []
    sizes: list[int] = []

    def watch(done: int, total: int) -> None:
        sizes.append(done - (seen[-1][0] if seen else 0))
        seen.append((done, total))

    harvest(tiny.model(), TEXTS, SITE, max_tokens=12, progress=watch)
    lengths = sorted(map(len, TEXTS))
    ends = [done for done, _ in seen]
    assert seen[-1] == (7, 7)
    assert all(
        size == 1 or lengths[end - 1] * size <= 12 for size, end in zip(sizes, ends, strict=True)
    )


def test_it_refuses_what_it_cannot_read() -> None:
    model = tiny.model()
    with pytest.raises(OptionError, match="position must be within 2 tokens, got 4"):
        harvest(model, TEXTS, SITE, position=4)
    with pytest.raises(OptionError, match="position must be within 2 tokens, got -3"):
        harvest(model, TEXTS, SITE, position=-3)
    read: Any = harvest
    told = "position must be 'last', 'first', 'mean', 'max', 'all', an index, several, or Spans"
    with tiny.unchecked(), pytest.raises(OptionError, match=told):
        read(model, TEXTS, SITE, position="middle")
    with tiny.unchecked(), pytest.raises(OptionError, match="position must be a whole number"):
        read(model, TEXTS, SITE, position=1.5)
    with pytest.raises(OptionError, match="sites with a position axis"):
        harvest(model, TEXTS, "blocks.0.attn.hook_pattern")
    with pytest.raises(UnknownNameError, match="No site named"):
        harvest(model, TEXTS, "blocks.7.hook_resid_post")
    with pytest.raises(PromptError, match="Prompt 1 is empty"):
        harvest(model, ["a", ""], SITE)
    with pytest.raises(PromptError, match="There is no prompt"):
        harvest(model, [], SITE)


def test_a_row_that_is_not_finite_is_refused() -> None:
    wild = [wb.Intervention("blocks.1.hook_mlp_out", wb.ops.scale(float(2**127)))]
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.hook_resid_post, text \d: \d+ of \d+"):
        harvest(tiny.model(), TEXTS, SITE, plan=[*wild, *wild])


def test_nothing_recorded_is_an_error_and_no_empty_row() -> None:
    with pytest.raises((EmptySelectionError, NotRecordedError)):
        harvest(tiny.model(), TEXTS, [])


@pytest.mark.parametrize(
    "last",
    ["hook_embed", "blocks.1.attn.hook_z", "blocks.1.hook_resid_post", "ln_final.hook_normalized"],
)
def test_the_forward_ends_at_the_last_site_in_the_middle_of_a_block(last: str) -> None:
    wanted = [wb.Site("hook_embed"), wb.Site.parse(last)]
    spy, passed = tiny.Spy(wanted.__contains__), list[None]()
    wb.run(tiny.model(), [65, 66], tap=spy)
    harvest(tiny.model(), [[65, 66]], wanted, check=lambda: passed.append(None))
    assert len(passed) == spy.sites.index(wanted[1]) + 1


def test_what_acts_on_some_texts_only_has_acted() -> None:
    model, long = tiny.model("llama", torch.float64), [i for i in TEXTS if len(i) > 6]
    plan = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero(), positions=6)]
    rows = harvest(model, TEXTS, SITE, plan=plan, max_tokens=1).rows[SITE]
    plain = harvest(model, TEXTS, SITE, max_tokens=1).rows[SITE]
    changed = [t for t, a, b in zip(TEXTS, rows, plain, strict=True) if not torch.equal(a, b)]
    assert changed == long
    with pytest.raises(EmptySelectionError, match="beyond the 6 tokens of the longest text"):
        harvest(model, [t for t in TEXTS if t not in long], SITE, plan=plan)
    generated = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero(), positions="generated")]
    with pytest.raises(NeverActedError, match="selects no token of any text"):
        harvest(model, TEXTS, SITE, plan=generated)


def test_sinks_get_what_a_harvest_holds_and_pads_are_counted() -> None:
    paces, model = list[wb.Pace](), tiny.model()
    rows, moments = wb.sinks.Rows(), wb.sinks.Moments()
    tally = wb.harvest_into(
        [rows, moments], model, TEXTS, SITE, position="all", max_tokens=12, progress=paces.append
    )
    whole = harvest(model, TEXTS, SITE, position="all", max_tokens=12)
    assert torch.equal(rows.finish()[SITE].rows, whole.rows[SITE])
    tiny.close(moments.finish()[SITE].mean, whole.rows[SITE].double().mean(0))
    n_tokens = sum(map(len, TEXTS))
    assert (tally.texts, tally.rows, tally.tokens) == (len(TEXTS), n_tokens, n_tokens)
    assert tally.forwards == len(paces)
    assert n_tokens <= tally.computed <= 12 * tally.forwards
    assert (paces[-1].done, paces[-1].tokens) == (len(TEXTS), n_tokens)
    for count in (1, 2):
        lengths = [5] * count
        even = wb.harvest_into(rows, model, [[7] * n for n in lengths], SITE)
        assert (even.tokens, even.forwards) == (even.computed, 1)


def test_workers_merge_to_what_one_gets() -> None:
    model = tiny.model("llama", torch.float64)
    parts = [wb.sinks.Moments() for _ in range(4)]
    for i, part in enumerate(parts):
        wb.harvest_into(part, model, TEXTS[i::4], SITE, position="all")
    one = wb.sinks.Moments()
    wb.harvest_into(one, model, TEXTS, SITE, position="all")
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3])).finish()[SITE]
    assert merged.n == one.finish()[SITE].n
    tiny.close(merged.covariance, one.finish()[SITE].covariance)


def test_a_check_may_cancel() -> None:
    calls = list[int]()

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 9:
            raise CancelledError("enough")

    with pytest.raises(CancelledError, match="enough"):
        harvest(tiny.model(), TEXTS, SITE, check=cancel, max_tokens=1)
    assert len(calls) == 9


def test_only_sinks_are_sinks() -> None:
    into: Any = wb.harvest_into
    for wrong in (None, 1, [1], "rows", [wb.sinks.Rows]):
        with tiny.unchecked(), pytest.raises(OptionError, match="sinks must be"):
            into(wrong, tiny.model(), TEXTS, SITE)
