"""What a page draws, as plain data: a figure says its axes, units, checks and its table twin."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from app.views.words import Sentence

Array = npt.NDArray[Any]
Tone = Literal["", "target", "foil", "accent"]


@dataclass(frozen=True)
class Check:
    """What stands beside a number so that it can be believed."""

    name: str
    value: str
    note: str = ""
    good: bool = True


@dataclass(frozen=True)
class Table:
    """The figure as rows: for screen readers, for copying, and for whoever doubts the colours."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


@dataclass(frozen=True)
class Foot:
    """What every figure ends in: its checks, its method, its table and the Python that made it."""

    checks: tuple[Check, ...]
    method: str
    table: Table
    code: str


@dataclass(frozen=True)
class Heat:
    """Cells over named rows and columns; NaN is a cell that does not exist."""

    values: Array  # row column
    label: str  # for who cannot see it
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_title: str
    column_title: str
    unit: str
    low: float = 0.0
    high: float = 1.0
    signed: bool = False
    upward: bool = False  # row 0 at the bottom, as layers are
    texts: tuple[tuple[str, ...], ...] = ()  # what is written in each cell
    picked: tuple[int, int] | None = None
    marked: tuple[tuple[int, int], ...] = ()
    tile: tuple[int, int] | None = None  # a mosaic: cells per tile
    column_labels: Literal["top", "bottom"] = "bottom"
    cell: tuple[int, int] = (16, 64)  # least and most pixels a cell is wide
    cell_height: int = 0  # pixels; 0 for square cells
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart."""

    label: str
    value: float
    text: str
    tone: Tone = ""
    detail: str = ""
    before: float | None = None  # where it stood without the plan
    literal: bool = False  # whether the label is a token
    active: bool = True  # whether the chart's actions apply to it


@dataclass(frozen=True)
class Bars:
    """Rows with a bar each, longest value to scale."""

    rows: tuple[Bar, ...]
    label: str
    unit: str
    most: float
    signed: bool = False
    actions: tuple[tuple[str, str], ...] = ()  # (name of the trigger's action, words)
    picked: int | None = None


@dataclass(frozen=True)
class Line:
    """One curve: a value for every step of the shared axis."""

    name: str
    values: Array
    tone: Tone
    texts: tuple[str, ...] = ()  # what each value is called, where its number is not enough


@dataclass(frozen=True)
class Lines:
    """Curves over one axis; with `upward`, the axis is the vertical one, as layers are."""

    lines: tuple[Line, ...]
    steps: tuple[str, ...]
    step_title: str
    value_title: str
    low: float
    high: float
    label: str
    upward: bool = False
    picked: int | None = None
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class View:
    """What every page has: the question it answers, the answer in words, and its foot."""

    title: Sentence
    sentences: tuple[Sentence, ...]
    foot: Foot
