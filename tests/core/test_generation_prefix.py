"""Which rows share a beginning, and that sharing changes nothing but the cost."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests import tiny
from tests.core.counting import Counting
from workbench.core.data import batch_of
from workbench.core.generation.prefix import SHORTEST, Beginning, beginnings, rest
from workbench.core.plan import as_plan
from workbench.core.program import compile_plan

pytestmark = pytest.mark.usefixtures("unchecked")
kinds = pytest.mark.parametrize("kind", tiny.KINDS)
POST = "blocks.1.hook_resid_post"
SITES = [POST, "blocks.2.attn.hook_pattern"]
ONE, TWO = "the first beginning ", "another that is long "  # 20 and 21 tokens
MIXED: dict[str, list[str]] = {
    "two families": [ONE + "abc", TWO + "x", ONE + "de", TWO + "yz", TWO + "w"],
    "a family and others": [ONE + "abc", "quite a different text here", ONE + "d", ONE + "e", "xy"],
    "a text and its end": [ONE, ONE + "abcdefg", ONE[:18], ONE],
    "families in a family": [ONE + TWO[:7] + "a", ONE + TWO[:7] + "b", ONE + "c", ONE + "dd", "e"],
}


def found(rows: Sequence[Sequence[int]], plan: Any = ()) -> set[Beginning]:
    batch = batch_of(tiny.model(), list(map(list, rows)), padding_side="left")
    return set(beginnings(batch, compile_plan(as_plan(plan), tiny.model(), len(rows))))


def text(rows: Sequence[str]) -> list[tuple[int, ...]]:
    return [tuple(row.encode()) for row in rows]


def test_rows_share_what_they_begin_with_and_others_run_what_they_have_more() -> None:
    assert found(text(MIXED["two families"])) == {
        Beginning((0, 2), 20),
        Beginning((1, 3, 4), 21),
    }
    # Of row 1 what is beyond the 3 tokens that are run with all others; nothing of row 4.
    assert found(text(MIXED["a family and others"])) == {
        Beginning((0, 2, 3), 20),
        Beginning((1,), 24),
    }
    assert found(text(MIXED["a text and its end"])) == {Beginning((0, 1, 2, 3), 17)}
    assert found(text([ONE, ONE])) == {Beginning((0, 1), 19)}


def test_what_spares_nothing_is_not_shared() -> None:
    assert found(text([ONE])) == set()
    assert found(text([ONE[:10] + "a", ONE[:10] + "b"])) == set()  # shorter than a pass is worth
    assert found(text([ONE, TWO])) == set()
    long = [TWO[i : i + 1] * 29 for i in range(5)]  # to run each of these alone would cost more
    assert found(text([ONE, ONE, *long])) == set()


def test_a_bare_function_or_an_operand_for_each_row_shares_nothing() -> None:
    whole = tiny.normal(2, 1, 24)
    for operator in (torch.sin, wb.ops.set(whole)):
        assert found(text([ONE, ONE]), [wb.Intervention(POST, operator)]) == set()
    assert found(text([ONE, ONE]), [wb.Intervention(POST, wb.ops.set(whole[:1]))])


ROWS = st.lists(
    st.builds(
        lambda start, n, own: (*([start] * n), *own),
        st.integers(0, 2),
        st.integers(0, 24),
        st.lists(st.integers(0, 2), min_size=1, max_size=6),
    ),
    min_size=2,
    max_size=7,
)


@given(rows=ROWS)
def test_beginnings_are_what_they_say(rows: list[tuple[int, ...]]) -> None:
    made = found(rows)
    inside = [row for one in made for row in one.rows]
    assert len(set(inside)) == len(inside)  # at most one for each row
    done = torch.zeros(len(rows), dtype=torch.long)
    for one in made:
        assert one.length >= SHORTEST
        assert len({rows[row][: one.length] for row in one.rows}) == 1
        done[list(one.rows)] = one.length
    batch = batch_of(tiny.model(), list(map(list, rows)), padding_side="left")
    left = rest(batch, done)
    for row, ids in enumerate(rows):
        kept = left.tokens[row] if left.real is None else left.tokens[row][left.real[row]]
        assert tuple(kept.tolist()) == ids[int(done[row]) :] != ()
    width = max(map(len, rows))
    if made:
        passes = sum(one.length + SHORTEST for one in made)
        assert passes + left.tokens.numel() < len(rows) * width
    assert made == found(rows)


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("way", [{}, {"prefill_chunk": 5}], ids=["whole", "chunks"])
@kinds
def test_sharing_changes_nothing_but_the_cost(kind: str, way: Any, name: str) -> None:
    model, prompts = tiny.model(kind), MIXED[name]
    assert found(text(prompts))
    push = wb.Intervention(POST, wb.ops.add(2 * tiny.normal(24)), positions=[1, -1])
    cut = wb.Intervention(SITES[1], wb.ops.scale(0.5), heads=[1], keys=[2, 18], optional=True)
    late = wb.Intervention(POST, wb.ops.scale(0.5), positions="generated")
    plans = [[push, late], [cut], [], [push, cut], [late]][: len(prompts)]
    options: Any = {"plans": plans, "record": SITES, "max_new_tokens": 5}
    made = wb.generate(model, prompts, **options, **way)
    apart = wb.generate(model, prompts, **options, share_prefix=False)
    assert made.tokens == apart.tokens
    assert [one.tokens for one in made.receipts] == [one.tokens for one in apart.receipts]
    for one, other in zip(made.receipts, apart.receipts, strict=True):
        assert one.change == pytest.approx(other.change, rel=1e-4)
    for row, said in enumerate(made.log_probabilities):
        assert said == pytest.approx(apart.log_probabilities[row], abs=1e-5)
        for site, values in made.activations.items():
            tiny.close(values[row], apart[site][row], 2e-5)


@pytest.mark.parametrize("name", MIXED)
@kinds
def test_a_row_keeps_its_bytes_whatever_plans_its_neighbours_have(kind: str, name: str) -> None:
    model, prompts = tiny.model(kind), MIXED[name]
    push = wb.Intervention(POST, wb.ops.add(2 * tiny.normal(24)))
    plain = wb.generate(model, prompts, record=POST, max_new_tokens=4)
    for free in range(len(prompts)):
        plans: list[Any] = [[] if row == free else [push] for row in range(len(prompts))]
        made = wb.generate(model, prompts, plans=plans, record=POST, max_new_tokens=4)
        assert made.log_probabilities[free] == plain.log_probabilities[free]
        assert tiny.same_bytes(made[POST][free], plain[POST][free])
        assert made.log_probabilities[free - 1] != plain.log_probabilities[free - 1]


def test_what_a_row_shares_is_on_its_own_account() -> None:
    """Rows with like plans share a run; each of their interventions has acted all the same."""
    push = wb.Intervention(POST, wb.ops.add(tiny.normal(24)), positions=[0, 1])
    everywhere = wb.Intervention(POST, wb.ops.scale(0.5))
    plans: Any = [[push], [], [push]]
    options: Any = {"plan": [everywhere], "plans": plans, "max_new_tokens": 2}
    made = wb.generate(tiny.model(), [ONE + "a", ONE + "b", ONE + "cd"], **options)
    assert [one.tokens for one in made.receipts] == [3 * 21 + 1 + 3, 2, 2]
    assert [one.acted for one in made.receipts] == [4, 1, 1]


def test_each_beginning_is_run_once() -> None:
    def passes(prompts: Sequence[str], **options: Any) -> list[tuple[int, ...]]:
        model = Counting(tiny.model())
        wb.generate(model, list(prompts), max_new_tokens=1, **options)
        return sorted(model.passes)

    families = MIXED["two families"]
    assert passes(families) == [(1, 20), (1, 21), (5, 3)]
    assert passes(families, share_prefix=False) == [(5, 23)]
    push = wb.Intervention(POST, wb.ops.add(tiny.normal(24)))
    own: Any = [[push], [], [], [], []]
    assert passes(families, plans=own) == [(1, 20), (1, 20), (1, 21), (5, 3)]
    assert passes(MIXED["a family and others"]) == [(1, 20), (1, 24), (5, 3)]
