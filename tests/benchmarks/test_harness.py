"""The benchmarks compare before they time, and say what was left out."""

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.__main__ import CASES, Group
from benchmarks.growth import Growing
from benchmarks.growth import lines as grown
from benchmarks.harness import OURS, Case, Ratio, Row, UnequalError, each, measure
from benchmarks.table import lines, table


class Counter:
    """A contestant that counts its turns in a list shared by all."""

    def __init__(self, name: str, gives: float, order: list[str]) -> None:
        self.name, self.gives, self.order = name, gives, order

    def __call__(self) -> float:
        self.order.append(self.name)
        return self.gives


def case(order: list[str], other: float = 1.0, turns: int = 3, name: str = "one") -> Case:
    ours, peer = Counter(OURS, 1.0, order), Counter("peer", other, order)
    return Case(name, ours, {"peer": peer}, each(gap), 0.1, turns)


def gap(one: float, other: float) -> float:
    return abs(one - other)


def test_nothing_is_timed_where_results_differ() -> None:
    order: list[str] = []
    with pytest.raises(UnequalError, match=r"one: peer differs by 5\.00e-01, over 1e-01"):
        measure(case(order, other=1.5))
    assert order == [OURS, "peer"]


def test_a_difference_that_is_no_number_is_a_difference() -> None:
    with pytest.raises(UnequalError):
        measure(case([], other=float("nan")))


@pytest.mark.parametrize(("turns", "most", "taken"), [(3, None, 4), (3, 2, 3), (1, None, 1)])
def test_a_turn_for_comparing_then_those_that_are_timed(
    turns: int, most: int | None, taken: int
) -> None:
    order: list[str] = []
    row = measure(case(order, turns=turns), most)
    assert order.count(OURS) == order.count("peer") == taken
    assert row.turns == min(turns, most or turns)


def test_whoever_began_a_turn_ends_the_next() -> None:
    order: list[str] = []
    measure(case(order, turns=2))
    assert order == [OURS, "peer", "peer", OURS, OURS, "peer"]


def test_a_table_goes_on_after_a_case_that_differs() -> None:
    failed: list[str] = []
    some = [case([], other=2.0, name="bad"), case([], name="good")]
    written = list(table(some, failed))
    assert failed == ["bad"]
    assert "NOT EQUAL" in written[2]
    assert written[3].startswith("| good |")
    assert len({line.count("|") for line in written if line}) == 1


def test_a_line_is_there_before_the_next_case_runs() -> None:
    order: list[str] = []
    written = table([case([], name="first"), case(order)], [])
    while "first" not in next(written):
        pass
    assert order == []


def row(ours: float, **peers: float) -> Row:
    ratios = {name: Ratio(time / ours, 0.5, 2.5) for name, time in peers.items()}
    return Row("some", {OURS: ours, **peers}, ratios, dict.fromkeys(peers, 1e-6), 3)


def test_a_line_says_times_ratio_spread_and_difference() -> None:
    (written,) = lines(row(0.002, peer=0.003))
    expected = "| some | 2.0 | peer | 3.0 | **1.50** | 0.50 to 2.50 | 3 | 1.0e-06 |"
    assert written == expected


def test_growth_is_of_the_first_and_may_lack_a_peer() -> None:
    never: Callable[[], Any] = list
    first = Case("", never, {"peer": never}, each(gap), 0)
    one = Growing("cost", ("1 × 1", "2 × 1", "4 × 1"), (first, first, first))
    ours, peer = grown(one, [row(1.0, peer=2.0), row(1.5, peer=5.0), row(4.0)])
    assert ours.endswith("| 1000.0 | 1500.0 | 4000.0 | **1.50** | **4.00** |")
    assert peer.endswith("| 2000.0 | 5000.0 |  | **2.50** |  |")


def test_every_group_can_be_run() -> None:
    assert set(Group) - set(CASES) == {Group.LOADING, Group.GROWTH}  # which have their own tables
