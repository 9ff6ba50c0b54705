"""Paired timing: contestants take turns in one process, and what they give is compared first.

A row's time is the median of its turns; its ratio the median of the turns' ratios (peer / ours:
above 1 we are faster), so that a slow moment of the machine hits both sides.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

OURS = "workbench"
Results = Mapping[str, Any]  # what each contestant gave, ours under OURS
Differences = Mapping[str, float]  # of each peer, its largest


@final
@dataclass(frozen=True)
class Case:
    """One comparison: what is measured, and each contestant's way of doing it."""

    name: str
    ours: Callable[[], Any]
    peers: Mapping[str, Callable[[], Any]]
    differences: Callable[[Results], Differences]
    tolerance: float
    turns: int = 9


@final
@dataclass(frozen=True)
class Ratio:
    """A peer's time over ours: the median of the turns, the least and the largest of them."""

    median: float
    low: float
    high: float


@final
@dataclass(frozen=True)
class Row:
    """The outcome of a case."""

    name: str
    seconds: Mapping[str, float]  # medians
    ratios: Mapping[str, Ratio]
    differences: Differences
    turns: int


@final
class UnequalError(ValueError):
    """Contestants do not compute the same, so their times say nothing."""


def measure(case: Case, most: int | None = None) -> Row:
    """Lets all contestants take a turn, compares what they gave, and then times `case.turns` more.

    Nobody is timed cold: what is compared is the warm-up. A case of one turn takes the better part
    of a minute, beside which that counts for little; its one turn is both compared and timed.
    `most` is the most turns that are timed.

    Raises:
        UnequalError: If they do not compute the same.
    """
    contestants = {OURS: case.ours, **case.peers}
    turns = case.turns if most is None else min(case.turns, most)
    first, differences = _compared(case, contestants)
    times = [first] if turns == 1 else [_turn(contestants, turn) for turn in range(turns)]
    medians = {name: statistics.median(turn[name] for turn in times) for name in contestants}
    ratios = {peer: _ratio([turn[peer] / turn[OURS] for turn in times]) for peer in case.peers}
    return Row(case.name, medians, ratios, differences, turns)


def each(difference: Callable[[Any, Any], float]) -> Callable[[Results], Differences]:
    """Every peer's result beside ours."""

    def differences(results: Results) -> Differences:
        peers = (name for name in results if name != OURS)
        return {peer: difference(results[OURS], results[peer]) for peer in peers}

    return differences


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())


def relative(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest value: a residual stream grows to thousands."""
    return apart(one, other) / float(one.abs().max())


def unlike(one: object, other: object) -> float:
    """0 where they are equal, else 1: of tokens."""
    return float(one != other)


def _compared(
    case: Case, contestants: Mapping[str, Callable[[], Any]]
) -> tuple[Mapping[str, float], Differences]:
    """The first turn's seconds, and the differences of what came of it.

    Raises:
        UnequalError: If one is over the tolerance.
    """
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, action in contestants.items():
        seconds[name], results[name] = _timed(action)
    differences = case.differences(results)
    for peer, difference in differences.items():
        if not difference <= case.tolerance:
            message = f"{case.name}: {peer} differs by {difference:.2e}, over {case.tolerance:.0e}"
            raise UnequalError(message)
    return seconds, differences


def _turn(contestants: Mapping[str, Callable[[], Any]], turn: int) -> Mapping[str, float]:
    """Seconds of each; whoever began the turn before comes last."""
    names = list(contestants)
    order = names if turn % 2 else reversed(names)
    return {name: _timed(contestants[name])[0] for name in order}


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def _ratio(ratios: list[float]) -> Ratio:
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
