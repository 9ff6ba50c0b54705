"""Scopes select absolute content positions: a brute-force reading decides what is right."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from workbench.core.errors import EmptySelectionError, FormatError, OptionError
from workbench.core.place import (
    At,
    Everywhere,
    Generated,
    Place,
    Prompt,
    Scope,
    Where,
    Window,
    scope,
    scope_from_json,
)

# A scope as written, and whether it holds the position `pos` of a row whose prompt has `p` tokens.
MEANINGS: list[tuple[Where, Callable[[int, int], bool]]] = [
    (None, lambda pos, p: True),
    ("all", lambda pos, p: True),
    ("prompt", lambda pos, p: pos < p),
    ("generated", lambda pos, p: pos >= p),
    ("predicting", lambda pos, p: pos >= p - 1),
    (2, lambda pos, p: pos == 2),
    (-1, lambda pos, p: pos == p - 1),
    ([0, 3, -2], lambda pos, p: pos in (0, 3, p - 2)),
    (slice(1, 4), lambda pos, p: 1 <= pos < 4),
    (slice(None, -1), lambda pos, p: pos < p - 1),
    (slice(-2, None), lambda pos, p: pos >= p - 2),
    (slice(1, -1), lambda pos, p: 1 <= pos < p - 1),
    (slice(None, None), lambda pos, p: True),
]
ROWS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=4)


def chosen(scope: Scope, place: Place) -> torch.Tensor:
    """A selection as a mask over the real tokens."""
    selected = scope.select(place)
    mask = (
        torch.full_like(place.positions, selected, dtype=torch.bool)
        if isinstance(selected, bool)
        else selected
    )
    return mask if place.real is None else mask & place.real


@pytest.mark.parametrize(("where", "means"), MEANINGS, ids=lambda value: str(value)[:20])
@given(rows=ROWS, side=st.sampled_from(["left", "right"]), cut=st.integers(0, 8))
def test_a_scope_selects_what_it_means(
    where: Where,
    means: Callable[[int, int], bool],
    rows: list[tuple[int, int]],
    side: str,
    cut: int,
) -> None:
    batch = tiny.batch([[1] * (p + more) for p, more in rows], [p for p, _ in rows], side)
    place = batch.place
    expected = torch.tensor(
        [
            [means(int(pos), p) and bool(here) for pos, here in zip(row, real, strict=True)]
            for row, real, (p, _) in zip(
                place.positions,
                torch.ones_like(place.positions) if place.real is None else place.real,
                rows,
                strict=True,
            )
        ]
    )
    assert torch.equal(chosen(scope(where), place), expected)


@pytest.mark.parametrize(("where", "means"), MEANINGS, ids=lambda value: str(value)[:20])
@given(rows=ROWS)
def test_a_scope_means_the_same_in_a_decode_step(
    where: Where, means: Callable[[int, int], bool], rows: list[tuple[int, int]]
) -> None:
    positions = torch.tensor([[p + more] for p, more in rows])
    prompt = torch.tensor([p for p, _ in rows])
    place = Place(
        positions,
        None,
        prompt,
        int(positions.min()),
        int(positions.max()),
        int(prompt.min()),
        int(prompt.max()),
    )
    expected = torch.tensor([[means(p + more, p)] for p, more in rows])
    assert torch.equal(chosen(scope(where), place), expected)


@pytest.mark.parametrize(("where", "means"), MEANINGS, ids=lambda value: str(value)[:20])
def test_a_scope_survives_json(where: Where, means: object) -> None:
    one = scope(where)
    again = scope_from_json(one.to_json())
    assert again == one
    assert scope(again) is again


def test_positions_are_written_in_many_ways() -> None:
    assert scope(None) == Everywhere()
    assert scope(3) == At((3,))
    assert scope((0, -1)) == At((0, -1))
    assert scope(range(2)) == At((0, 1))
    assert scope(slice(1, None, 1)) == Window(1, None)
    assert scope("prompt") == Prompt()
    assert scope("predicting") == Generated(predicting=True)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("everywhere", "one of all, prompt, generated, predicting, got 'everywhere'"),
        (True, "a whole number, got True"),
        (slice(0, 4, 2), "a slice without a step"),
        (2**40, "indices between"),
        (slice(None, -(2**40)), "indices between"),
    ],
)
def test_what_is_no_scope_is_refused(where: Where, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        scope(where)


def test_an_empty_list_of_positions_is_refused() -> None:
    with pytest.raises(EmptySelectionError, match="positions is empty"):
        scope([])


@pytest.mark.parametrize(
    "data",
    [
        None,
        7,
        "prompt",
        [],
        {},
        {"kind": "bogus"},
        {"kind": 3},
        {"kind": "positions"},
        {"kind": "positions", "indices": "12"},
        {"kind": "positions", "indices": [1.5]},
        {"kind": "positions", "indices": [True]},
        {"kind": "window", "start": 0},
        {"kind": "window", "start": "0", "stop": None},
        {"kind": "window", "start": True, "stop": None},
    ],
)
def test_json_that_is_no_scope_is_a_format_error(data: object) -> None:
    with pytest.raises(FormatError, match="No scope is written as"):
        scope_from_json(data)


@given(
    indices=st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_missed_names_the_positions_that_no_row_has(indices: list[int], lengths: list[int]) -> None:
    def nowhere(index: int) -> bool:
        return all(not -length <= index < length for length in lengths)

    assert At(tuple(indices)).missed(lengths, lengths) == tuple(filter(nowhere, indices))


def test_a_negative_position_counts_from_the_prompt_however_long_the_text_grew() -> None:
    assert At((-1, -6, 8, 9)).missed([5], [9]) == (-6, 9)


@pytest.mark.parametrize("where", [None, "prompt", "generated", slice(50, None)])
def test_only_positions_named_one_by_one_can_be_missed(where: Where) -> None:
    assert scope(where).missed([3], [3]) == ()


@given(rows=ROWS, side=st.sampled_from(["left", "right"]))
def test_a_place_of_some_rows_is_those_rows(rows: list[tuple[int, int]], side: str) -> None:
    batch = tiny.batch([[1] * (p + more) for p, more in rows], [p for p, _ in rows], side)
    picked: Sequence[int] = list(reversed(range(len(rows))))
    part = batch.place.of(picked)
    assert torch.equal(part.positions, batch.positions[picked])
    assert torch.equal(part.prompt, batch.prompt[picked])
    assert (part.low, part.high) == (int(part.positions.min()), int(part.positions.max()))
    assert (part.prompt_low, part.prompt_high) == (min(batch.prompt), max(batch.prompt))


def test_only_the_chosen_tokens_of_a_place_count() -> None:
    place = tiny.batch([[1] * 5, [1] * 3], [5, 3]).place
    chosen = torch.tensor([[False, True, True, False, False], [False, True, False, False, False]])
    part = place.only(chosen)
    assert (part.low, part.high) == (1, 2)
    assert part.positions.tolist() == [[1, 1, 2, 1, 1], [1, 1, 1, 1, 1]]
    assert part.real is not None
    assert torch.equal(part.real, chosen)


def test_from_start_means_that_columns_are_positions() -> None:
    assert tiny.batch([[1, 2, 3]], [3]).place.from_start
    assert not tiny.batch([[1, 2, 3], [1]], [3, 1]).place.from_start
    later = Place(torch.tensor([[0], [4]]), None, torch.tensor([1, 1]), 0, 4, 1, 1)
    assert not later.from_start
