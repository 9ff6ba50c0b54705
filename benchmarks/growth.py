"""How each cost grows: at once, twice and four times the prompt length, and the rows.

Random tokens, or a text that is read from different places; prompts of a contrast differ in one
token at two thirds of their length, as in the sweeps. TransformerLens's sweeps, a full forward for
each cell, take part at once and twice: four times would take many minutes a line.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

import workbench as wb
from benchmarks import capture, everything, forward, generation, sweeps
from benchmarks.harness import OURS, Case, Row, UnequalError, measure
from benchmarks.peers import Peers, tokens
from benchmarks.table import head, line, milliseconds

NEW_TOKENS = 16
TURNS = 3
Shape = tuple[int, int]  # rows, columns
TEXT = (
    "The library of the old town stood beside the river, and every morning a woman named Ada "
    "opened its doors, lit the lamps and put the books that had come back onto their shelves. "
) * 12


@final
@dataclass(frozen=True)
class Growing:
    """One cost at three sizes."""

    name: str
    sizes: tuple[str, ...]
    cases: tuple[Case, ...]


def growing(peers: Peers) -> Iterator[Growing]:
    """Every cost, along the prompt and along the rows."""
    for along, three in (("length", ((1, 64), (1, 128), (1, 256))), ("rows", _rows(64))):
        yield _over(f"forward, {along}", three, partial(forward.forward, peers, turns=TURNS))
        yield _over(f"record streams, {along}", three, partial(forward.record, peers, turns=TURNS))
        all_of = partial(everything.everything, peers, turns=TURNS)
        yield _over(f'record="all", {along}', three, all_of)
        steered = partial(_steered, peers)
        yield _over(f"generate {NEW_TOKENS}, steered, {along}", three, steered)
    for along, three in (("length", ((8, 16), (8, 32), (8, 64))), ("strengths", _rows(16, 8))):
        name = f"strengths as one batch, {NEW_TOKENS} tokens, {along}"
        yield _over(name, three, partial(_strengths, peers))
    for what in ("heads", "layers × positions"):
        for along, three in (("length", ((1, 15), (1, 30), (1, 60))), ("examples", _rows(15))):
            yield _over(f"patch {what}, {along}", three, partial(_patching, peers, what))
    for along, three in (("length", ((64, 1), (64, 2), (64, 4))), ("texts", _rows(1, 64))):
        yield _over(f"capture as they come, {along}", three, partial(_capture, peers))


def table(peers: Peers, failed: list[str], most: int | None = None) -> Iterator[str]:
    """A line for each contestant of each cost."""
    titles = ("cost", "of", "sizes", "ms at 1 ×", "ms at 2 ×", "ms at 4 ×", "2 ×", "4 ×")
    yield from head(titles)
    for one in growing(peers):
        try:
            yield from lines(one, [measure(case, most) for case in one.cases])
        except UnequalError as error:
            failed.append(one.name)
            yield line(one.name, "NOT EQUAL", str(error), *[""] * (len(titles) - 3))
    yield ""


def lines(one: Growing, rows: list[Row]) -> Iterator[str]:
    """Times of each contestant at the three sizes, and what they are of the first."""
    sizes = ", ".join(one.sizes)
    for name in (OURS, *one.cases[0].peers):
        times = [row.seconds.get(name) for row in rows]
        least = times[0]
        grown = ["" if t is None or least is None else f"**{t / least:.2f}**" for t in times]
        shown = ["" if t is None else milliseconds(t) for t in times]
        yield line(one.name, name, sizes, *shown, *grown[1:])


def _rows(columns: int, fewest: int = 1) -> tuple[Shape, ...]:
    return tuple((fewest * times, columns) for times in (1, 2, 4))


def _over(name: str, shapes: tuple[Shape, ...], case: Callable[[int, int], Case]) -> Growing:
    sizes = tuple(f"{rows} × {columns}" for rows, columns in shapes)
    return Growing(name, sizes, tuple(case(*shape) for shape in shapes))


def _text(peers: Peers, rows: int, columns: int) -> Tensor:
    """Rows of a text, each from a place of its own on."""
    assert peers.ours.tokenizer is not None
    ids = peers.ours.tokenizer.encode(TEXT)
    return torch.tensor([ids[5 * row : 5 * row + columns] for row in range(rows)])


def _steered(peers: Peers, rows: int, columns: int) -> Case:
    return generation.steered(peers, _text(peers, rows, columns), NEW_TOKENS, turns=TURNS)


def _strengths(peers: Peers, rows: int, columns: int) -> Case:
    values = torch.linspace(-2, 2, rows).tolist()
    return generation.strengths(peers, _text(peers, 1, columns), values, NEW_TOKENS, turns=1)


def _patching(peers: Peers, what: sweeps.What, rows: int, columns: int) -> Case:
    clean = tokens(rows, columns)
    corrupt = clean.clone()
    corrupt[:, columns * 2 // 3] += 1
    contrast = wb.Contrast(clean.tolist(), corrupt.tolist(), target=1000, foil=2000)
    beside = rows * columns <= 2 * 15
    name = f"{rows} × {columns}"
    return sweeps.patching(peers, what, contrast, name, turns=1, beside=beside)


def _capture(peers: Peers, rows: int, longer: int) -> Case:
    return capture.as_they_come(peers, capture.texts(rows, longer), turns=1)
