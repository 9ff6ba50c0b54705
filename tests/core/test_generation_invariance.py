"""Every operator at every scope means the same however a text is made and run.

Cached, in full, in chunks, beside rows of other plans, alone, in another order, with a shared
beginning, and as one forward over the finished text with pads on either side: the same tokens, and
log probabilities to float rounding (steering reference, section 3.3). Operators and scopes are
found, not listed: see `tests/instances.py`.
"""

from typing import Any

import pytest
import torch

import workbench as wb
from tests import instances, tiny
from workbench.core.gates import Gate
from workbench.core.generate import Generation
from workbench.core.standing import Scope

pytestmark = pytest.mark.usefixtures("unchecked")
NEW = 5
SITE = "blocks.1.hook_resid_post"
OPERATORS, SCOPES = instances.operators(24), instances.scopes()
PROMPTS = list(map(list, instances.PROMPTS))
TOGETHER = [[*range(1, 19), *row] for row in PROMPTS]  # a beginning of 18 tokens and more
WAYS: dict[str, dict[str, Any]] = {
    "in full": {"use_cache": False},
    "chunks of 1": {"prefill_chunk": 1},
    "chunks of 3": {"prefill_chunk": 3},
    "chunks of all but 1": {"prefill_chunk": 8},
    "nothing shared": {"share_prefix": False},
}


def change(
    name: str,
    scope: Scope | None,
    schedule: wb.schedules.Schedule | None = None,
    gate: Gate | None = None,
) -> Any:
    """One intervention, strong enough to be seen, that need not find a token in every row."""
    options: Any = {"positions": scope, "schedule": schedule, "gate": gate, "optional": True}
    return wb.Intervention(SITE, OPERATORS[name], strength=1.5, **options)


def make(kind: str, prompts: Any, **options: Any) -> Generation:
    return wb.generate(tiny.model(kind), prompts, max_new_tokens=NEW, **options)


def same(one: Generation, other: Generation, rows: list[int] | None = None) -> None:
    """The same text: `other`'s rows are those `rows` of `one`."""
    rows = list(range(len(other.tokens))) if rows is None else rows
    assert [one.tokens[row] for row in rows] == list(other.tokens)
    for mine, row in enumerate(rows):
        said = torch.tensor(one.log_probabilities[row])
        tiny.close(said, torch.tensor(other.log_probabilities[mine]), 1e-5)


def forced(kind: str, made: Generation, plan: list[Any], side: str) -> None:
    """One forward over the finished texts gives the log probabilities they were made with."""
    whole = [p + t for p, t in zip(made.prompt, made.tokens, strict=True)]
    ends = [len(prompt) for prompt in made.prompt]
    batch = tiny.batch(whole, ends, side)
    logits = wb.run(tiny.model(kind), batch, plan=plan).logits.log_softmax(-1)
    for row, (prompt, text) in enumerate(zip(made.prompt, made.tokens, strict=True)):
        first = max(map(len, whole)) - len(whole[row]) if side == "left" else 0
        at = torch.arange(first + len(prompt) - 1, first + len(prompt) + len(text) - 1)
        said = torch.tensor(made.log_probabilities[row])
        tiny.close(logits[row, at, torch.tensor(text)], said, 1e-5)


def every_way(kind: str, plan: list[Any]) -> Generation:
    """The generation, after it was found equal in every way of making it."""
    made = make(kind, PROMPTS, plan=plan)
    for options in WAYS.values():
        again = make(kind, PROMPTS, plan=plan, **options)
        same(made, again)
        assert [r.tokens for r in again.receipts] == [r.tokens for r in made.receipts]
        for one, other in zip(made.receipts, again.receipts, strict=True):
            assert one.change == pytest.approx(other.change, rel=1e-4, abs=1e-6)
    same(made, make(kind, PROMPTS[::-1], plan=plan), [2, 1, 0])
    other = [wb.Intervention("blocks.0.hook_resid_pre", wb.ops.scale(0.5))]
    same(made, make(kind, PROMPTS[:1], plan=plan), [0])
    mixed = make(kind, [*PROMPTS, PROMPTS[0]], plans=[plan, plan, plan, other])
    assert mixed.tokens[:3] == made.tokens
    for side in ("left", "right"):
        forced(kind, made, plan, side)
    return made


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_at_a_scope_means_the_same_in_every_way(operator: str, scope: str) -> None:
    kind = tiny.KINDS[len(scope) % 2]  # either, so that the suite stays quick
    made = every_way(kind, [change(operator, SCOPES[scope])])
    assert made.receipts[0].tokens > 0  # or this scope has been tested on nothing


@pytest.mark.parametrize("schedule", instances.SCHEDULES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_schedule_means_the_same_in_every_way(operator: str, schedule: str) -> None:
    kind = tiny.KINDS[len(schedule) % 2]
    made = every_way(kind, [change(operator, None, instances.SCHEDULES[schedule])])
    constant = make(kind, PROMPTS, plan=[change(operator, None)])
    assert made.receipts[0].change != pytest.approx(constant.receipts[0].change, rel=1e-3)


@pytest.mark.parametrize("gate", instances.GATES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_gate_means_the_same_in_every_way(operator: str, gate: str) -> None:
    kind = tiny.KINDS[len(gate) % 2]
    made = every_way(kind, [change(operator, None, gate=instances.GATES[gate])])
    always = make(kind, PROMPTS, plan=[change(operator, None)])
    assert made.receipts[0].change != pytest.approx(always.receipts[0].change, rel=1e-3)
    if instances.GATES[gate].shape == "step":
        assert 0 < made.receipts[0].tokens < always.receipts[0].tokens


@pytest.mark.parametrize("gate", ["below, earlier", "sigmoid by the prompt", "while"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_gate_at_a_scope_means_the_same_in_every_way(scope: str, gate: str) -> None:
    kind = tiny.KINDS[(len(gate) + len(scope)) % 2]
    every_way(kind, [change("Add", SCOPES[scope], gate=instances.GATES[gate])])


@pytest.mark.parametrize("gate", instances.GATES)
def test_a_shared_beginning_remembers_what_a_gate_read(gate: str) -> None:
    kind = tiny.KINDS[len(gate) % 2]
    own = [change("Add", None, gate=instances.GATES[gate])]
    for plans in ([own, [], own], [own] * 3):
        made = make(kind, TOGETHER, plans=plans)
        for ways in ({"share_prefix": False}, {"prefill_chunk": 5}, {"use_cache": False}):
            again = make(kind, TOGETHER, plans=plans, **ways)
            same(made, again)
            assert [r.tokens for r in again.receipts] == [r.tokens for r in made.receipts]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_shared_beginning_changes_nothing_but_the_cost(scope: str) -> None:
    kind = tiny.KINDS[len(scope) % 2]
    plans = [[], [change("Add", SCOPES[scope])], [change("Scale", SCOPES[scope])]]
    options: dict[str, Any] = {"plans": plans, "record": SITE}
    made = make(kind, TOGETHER, **options)
    for ways in ({"share_prefix": False}, {"prefill_chunk": 5}, {"use_cache": False}):
        again = make(kind, TOGETHER, **options, **ways)
        same(made, again)
        assert [r.tokens for r in again.receipts] == [r.tokens for r in made.receipts]
        for mine, other in zip(made[SITE], again[SITE], strict=True):
            tiny.close(mine, other, 2e-5)
    plain = make(kind, TOGETHER)
    assert plain.log_probabilities[0] == made.log_probabilities[0]  # to the bit
