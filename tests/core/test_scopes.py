"""Scopes to write down select what they mean, whatever is in a pass, and are read from JSON."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import workbench as wb
from tests import instances, tiny
from workbench.core.data import Batch
from workbench.core.errors import EmptySelectionError, FormatError, NeverActedError, OptionError
from workbench.core.phrases import bound
from workbench.core.place import scope_from_json
from workbench.core.standing import Scope

SITE = "blocks.1.hook_resid_post"
PROMPT, TEXT = 4, [1, 2, 3, 1, 2, 9, 4, 1]  # a prompt of 4 tokens and 4 that were generated
MEANINGS: dict[str, tuple[Callable[[], Scope], set[int]]] = {
    "first": (lambda: wb.scopes.first(2), {0, 1}),
    "first beyond": (lambda: wb.scopes.first(6), {0, 1, 2, 3}),
    "last": (lambda: wb.scopes.last(3), {1, 2, 3}),
    "steps": (lambda: wb.scopes.steps(1, 3), {5, 6}),
    "steps on": (lambda: wb.scopes.steps(2), {6, 7}),
    "every": (lambda: wb.scopes.every(3), {1, 4, 7}),
    "every from": (lambda: wb.scopes.every(3, from_start=True), {0, 3, 6}),
    "every off": (lambda: wb.scopes.every(4, offset=1), {1, 5}),
    "tokens": (lambda: wb.scopes.tokens([1, 9]), {0, 3, 5, 7}),
    "after": (lambda: wb.scopes.after([1, 2]), {2, 3, 4, 5, 6, 7}),
    "after one": (lambda: wb.scopes.after(9), {6, 7}),
    "after text": (lambda: wb.scopes.after("\x02\x09"), {6, 7}),
    "after nothing": (lambda: wb.scopes.after([7, 7]), set()),
    "until": (lambda: wb.scopes.until("\x03"), {0, 1, 2}),
    "between": (lambda: wb.scopes.between([2], [9]), {2, 3}),
    "between open": (lambda: wb.scopes.between([9], [3]), {6, 7}),
    "between long": (lambda: wb.scopes.between([1], [2, 9]), {1, 2, 4}),
    "matching": (lambda: wb.scopes.matching("[\x01\x02]+"), {0, 1, 3, 4, 7}),
    "matching what ends": (lambda: wb.scopes.matching("\x02\x09|\x03\x01"), {3, 5}),
    "matching as far as it came": (lambda: wb.scopes.matching("\x02(?!\x09)"), {1, 4}),
    "matching a whole": (lambda: wb.scopes.matching("^\x01\x02\x03$"), {2}),
    "matching nothing": (lambda: wb.scopes.matching("\x01*?(?=\x01)|zz"), set()),
    "after match": (lambda: wb.scopes.after_match("[\x02\x03][\x09\x05]"), {6, 7}),
    "after the first match": (lambda: wb.scopes.after_match("\x01+"), {1, 2, 3, 4, 5, 6, 7}),
    "after match that passes": (lambda: wb.scopes.after_match("\x03\x01(?!\x02)"), {4, 5, 6, 7}),
    "after match of an end": (lambda: wb.scopes.after_match("\x02$"), {2, 3, 4, 5, 6, 7}),
    "after no match": (lambda: wb.scopes.after_match("\x07"), set()),
    "union": (lambda: wb.scopes.union(0, wb.scopes.steps(3)), {0, 7}),
    "without": (lambda: wb.scopes.without("all", "prompt", 5), {4, 6, 7}),
    "overlap": (lambda: wb.scopes.overlap("generated", wb.scopes.tokens(1)), {7}),
}


def chosen(scope: Scope, batch: Batch) -> set[int]:
    """The positions selected among the real tokens of the first row."""
    place = batch.place
    selected = bound(scope, tiny.Bytes()).select(place)
    mask = (
        selected
        if isinstance(selected, torch.Tensor)
        else torch.full_like(place.positions, int(selected)).bool()
    )
    mask = mask if place.real is None else mask & place.real
    return set(place.positions[0][mask[0]].tolist())


@pytest.mark.parametrize("name", MEANINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_scope_selects_what_it_means(name: str, side: str) -> None:
    scope, expected = MEANINGS[name][0](), MEANINGS[name][1]
    batch = tiny.batch([TEXT, [*TEXT, 5, 5]], [PROMPT, PROMPT], side)
    assert chosen(scope, batch) == expected
    shift = 2 if side == "left" else 0
    for cut in range(1, 8):  # in two chunks, and the second of them token by token
        parts = [batch.columns(0, shift + cut)]
        parts += [batch.columns(shift + i, shift + i + 1) for i in range(cut, 8)]
        assert set().union(*(chosen(scope, part) for part in parts)) == expected


@pytest.mark.parametrize("scope", instances.scopes().values(), ids=list(instances.scopes()))
def test_every_scope_survives_json(scope: Scope) -> None:
    assert scope_from_json(scope.to_json()) == scope


@pytest.mark.parametrize("schedule", instances.SCHEDULES.values(), ids=list(instances.SCHEDULES))
def test_a_plan_keeps_scope_and_schedule(schedule: Any, tmp_path: Any) -> None:
    scope = wb.scopes.without(wb.scopes.after("x"), 0)
    one = wb.Intervention(SITE, wb.ops.scale(2.0), positions=scope, schedule=schedule)
    wb.Plan((one,)).save(tmp_path)
    again = wb.Plan.load(tmp_path)[0]
    assert again.positions == scope
    assert again.schedule == schedule


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "first"},
        {"kind": "first", "n": 0},
        {"kind": "first", "n": 1.0},
        {"kind": "last", "n": 2, "more": 1},
        {"kind": "tokens", "ids": []},
        {"kind": "span", "intervals": [[3, 1]], "role": ""},
        {"kind": "span", "intervals": [[3]], "role": ""},
        {"kind": "combination", "include": [{"kind": "what"}], "exclude": []},
        {"kind": "after_text", "text": ""},
        {"kind": "matching", "pattern": "("},
        {"kind": "matching", "pattern": 3},
        {"kind": "after_match", "pattern": "a*"},
    ],
)
def test_what_is_no_scope_is_refused(data: Any) -> None:
    with pytest.raises((FormatError, EmptySelectionError)):
        scope_from_json(data)


def test_roles_are_spans_and_what_is_generated_is_the_assistant_s() -> None:
    spans = [Said("user", 1, 3), Said("assistant", 4, 6), Said("user", 7, 8)]
    batch = tiny.batch([[1] * 12], [10])
    assert chosen(wb.scopes.spoken(spans, "user"), batch) == {1, 2, 7}
    assert chosen(wb.scopes.spoken(spans, "assistant"), batch) == {4, 5, 10, 11}
    assert chosen(wb.scopes.spoken(spans[:1], "assistant"), batch) == {10, 11}
    with pytest.raises(EmptySelectionError, match=r"No 'system' says anything here; assistant, us"):
        wb.scopes.spoken(spans, "system")


class Said:
    """A span of a conversation."""

    def __init__(self, role: str, start: int, stop: int) -> None:
        self.role, self.start, self.stop = role, start, stop


@pytest.mark.parametrize(
    ("scope", "error", "message"),
    [
        (wb.scopes.last(9), EmptySelectionError, r"positions \[-9\] are beyond"),
        (wb.scopes.first(9), EmptySelectionError, r"positions \[8\] are beyond"),
        (wb.scopes.after("zz"), NeverActedError, "never acted"),
        (wb.scopes.steps(90), NeverActedError, "never acted"),
    ],
)
def test_a_scope_that_was_never_reached_is_refused(
    scope: Scope, error: type[Exception], message: str
) -> None:
    plan = [wb.Intervention(SITE, wb.ops.zero(), positions=scope)]
    with pytest.raises(error, match=message):
        wb.generate(tiny.model(), "abcde", plan=plan, max_new_tokens=2)


def test_tokens_that_nobody_told_are_asked_for() -> None:
    later = Batch(torch.tensor([[1]]), None, torch.tensor([3]), torch.tensor([3]))
    with pytest.raises(OptionError, match="this pass knows none before"):
        wb.scopes.tokens(1).select(later.place)
    for scope in (wb.scopes.after("a"), wb.scopes.matching("a"), wb.scopes.after_match("a")):
        with pytest.raises(OptionError, match="this model has no tokenizer"):
            scope.select(tiny.batch([[1]], [1]).place)
        plan = [wb.Intervention(SITE, wb.ops.zero(), positions=scope)]
        with pytest.raises(OptionError, match="this model has no tokenizer"):
            wb.run(wb.load(tiny.hf("llama")), [1, 2], plan=plan)


def values(schedule: Any, steps: Sequence[int]) -> list[float]:
    place = tiny.batch([[0] * 20], [2]).place
    found = schedule.at(place)[0]
    return [float(found[2 + step]) for step in steps]


def test_schedules_have_their_values_at_their_steps() -> None:
    linear = wb.schedules.linear(1.0, 0.0, steps=4, prompt_value=0.0)
    assert values(linear, [-2, -1, 0, 1, 2, 4, 9]) == [0.0, 0.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert values(wb.schedules.cosine(1.0, 0.0, steps=2), [-1, 0, 1, 2]) == pytest.approx(
        [1, 1, 0.5, 0]
    )
    assert values(wb.schedules.exponential(1.0, 0.25, steps=2), [0, 1, 2]) == [1, 0.5, 0.25]
    assert values(wb.schedules.first(2), [-1, 0, 1, 2, 3]) == [1, 1, 1, 0, 0]
    steps = wb.schedules.piecewise([(0, 1.0), (2, 3.0), (4, -1.0)])
    assert values(steps, [0, 1, 2, 3, 4]) == [1, 2, 3, 1, -1]
    for wrong in ([], [(1, 1.0)], [(0, 1.0), (0, 2.0)]):
        with pytest.raises((OptionError, EmptySelectionError)):
            wb.schedules.piecewise(wrong)


def test_a_schedule_multiplies_the_strength_and_1_and_0_are_exact() -> None:
    add = wb.ops.add(tiny.normal(24))
    ids = tiny.batch([[1, 2, 3, 4, 5]], [2])

    def run(**options: Any) -> torch.Tensor:
        plan = [wb.Intervention(SITE, add, **options)]
        return wb.run(tiny.model(), ids, plan=plan, record=SITE)[SITE][0]

    plain = wb.run(tiny.model(), ids, record=SITE)[SITE][0]
    whole, half = run(strength=2.0), run(strength=1.0)
    timed = run(
        strength=2.0, schedule=wb.schedules.piecewise([(0, 1.0), (2, 0.0)], prompt_value=0.0)
    )
    assert tiny.same_bytes(timed[:2], plain[:2])
    tiny.close(timed[2], whole[2], 1e-6)
    tiny.close(timed[3], half[3], 1e-6)
    assert tiny.same_bytes(timed[4], plain[4])
