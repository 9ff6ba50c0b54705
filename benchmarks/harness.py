"""Paired timing: contestants take turns in one process, and equality is checked before the clock.

A row's time is the median of its turns; its ratio the median of the turns' ratios (peer / ours:
above 1 we are faster), so that a slow moment of the machine hits both sides.
"""

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import final

import torch

OURS = "workbench"
PACKAGES = ("torch", "transformers", "transformer-lens")


@final
@dataclass(frozen=True)
class Case:
    """One comparison: what is measured, and each contestant's way of doing it."""

    name: str
    contestants: Mapping[str, Callable[[], object]]
    check: Callable[[], Mapping[str, float]]  # each peer's largest difference to ours
    tolerance: float
    turns: int = 9


@final
@dataclass(frozen=True)
class Row:
    """The outcome of a case."""

    name: str
    seconds: Mapping[str, float]  # medians
    ratios: Mapping[str, float]  # peer / ours, medians of the turns
    differences: Mapping[str, float]
    turns: int


def measure(case: Case) -> Row:
    """Checks that all contestants compute the same, then lets them take turns.

    Raises:
        ValueError: If they do not compute the same.
    """
    differences = case.check()
    for peer, difference in differences.items():
        if not difference <= case.tolerance:
            message = f"{case.name}: {peer} differs by {difference:.2e}, over {case.tolerance:.0e}"
            raise ValueError(message)
    names = list(case.contestants)
    turns: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(case.turns + 1):
        for name in names if turn % 2 else reversed(names):
            turns[name].append(_seconds(case.contestants[name]))
    kept = {name: times[1:] for name, times in turns.items()}  # the first turn warms up
    ratios = {
        name: statistics.median(p / o for p, o in zip(times, kept[OURS], strict=True))
        for name, times in kept.items()
        if name != OURS
    }
    medians = {name: statistics.median(times) for name, times in kept.items()}
    return Row(case.name, medians, ratios, differences, case.turns)


def markdown(rows: list[Row]) -> str:
    """The table, with what it was measured on."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    head = ["case", f"{OURS}, ms", *(f"{peer}, ms" for peer in peers)]
    head += [f"{peer} / ours" for peer in peers] + [f"difference to {peer}" for peer in peers]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.name, f"{1000 * row.seconds[OURS]:.1f}"]
        cells += [_shown(row.seconds, peer, lambda value: f"{1000 * value:.1f}") for peer in peers]
        cells += [_shown(row.ratios, peer, lambda value: f"**{value:.2f}**") for peer in peers]
        cells += [_shown(row.differences, peer, lambda value: f"{value:.1e}") for peer in peers]
        lines.append("| " + " | ".join(cells) + " |")
    turns = ", ".join(sorted({str(row.turns) for row in rows}))
    return "\n".join([*lines, "", f"{machine()}; medians of {turns} paired turns."])


def _shown(values: Mapping[str, float], peer: str, write: Callable[[float], str]) -> str:
    """A cell of the table; empty where a peer takes no part."""
    return write(values[peer]) if peer in values else ""


def machine() -> str:
    """Processor threads and versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{platform.machine()}, {torch.get_num_threads()} threads, float32; {packages}"


def _seconds(action: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
