"""What every result is: values with named axes, a unit, checks and provenance; shown and saved.

A result is frozen and never changes its inputs. Its checks stand beside its numbers: a residual,
a baseline, an interval, a second method.
"""

import html
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import FormatError
from workbench.core.provenance import Provenance
from workbench.core.store import write_tensors

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "workbench.result"


@final
@dataclass(frozen=True)
class Axis:
    """A named axis and the label of each of its entries."""

    name: str
    labels: tuple[str, ...]


@final
@dataclass(frozen=True)
class Check:
    """A number that says how far another can be trusted."""

    name: str
    value: float
    unit: str
    note: str  # what a good value is, in a sentence


@final
@dataclass(frozen=True)
class Table:
    """Columns of equal length; prints aligned, draws itself in a notebook."""

    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def rows(self) -> list[dict[str, Any]]:
        """One mapping per row."""
        values = zip(*self.columns.values(), strict=True)
        return [dict(zip(self.columns, row, strict=True)) for row in values]

    def to_pandas(self) -> "pd.DataFrame":
        """The same as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(dict(self.columns))

    @override
    def __str__(self) -> str:
        shown = {name: [name, *map(_shown, column)] for name, column in self.columns.items()}
        widths = {name: max(map(len, cells)) for name, cells in shown.items()}
        lines = zip(
            *([c.rjust(widths[n]) for c in cells] for n, cells in shown.items()), strict=True
        )
        return "\n".join("  ".join(line).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_shown(v))}</td>" for v in row.values()) + "</tr>"
            for row in self.rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Result(ABC):
    """A frozen result of a method."""

    axes: tuple[Axis, ...]
    unit: str
    checks: tuple[Check, ...]
    provenance: Provenance

    @abstractmethod
    def values(self) -> Mapping[str, Tensor]:
        """Its tensors by name; the first has exactly `axes`."""

    @abstractmethod
    def details(self) -> Mapping[str, Any]:
        """What its tensors, axes and checks leave unsaid, as plain data by name."""

    @abstractmethod
    def table(self) -> Table:
        """The numbers as a table, checks beside them."""

    @property
    def saved_as(self) -> str:
        """The kind of result a file of it holds."""
        return type(self).__name__

    def save(self, file: str | Path) -> Path:
        """Writes one safetensors file with everything, axes and provenance in its header."""
        file = Path(file)
        header = {
            "format": FORMAT,
            "kind": self.saved_as,
            "values": list(self.values()),  # a safetensors file is in the order of the alphabet
            "unit": self.unit,
            "axes": [[axis.name, list(axis.labels)] for axis in self.axes],
            "checks": [[c.name, c.value, c.unit, c.note] for c in self.checks],
            "provenance": self.provenance.to_json(),
            "details": dict(self.details()),
        }
        write_tensors(file, self.values(), {FORMAT: json.dumps(header, default=str)})
        return file

    @override
    def __repr__(self) -> str:
        size = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in self.axes)
        checks = "; ".join(map(_told, self.checks))
        made = f"{self.saved_as}({size}, in {self.unit}, by {self.provenance.method}"
        return f"{made} on {self.provenance.model}; {checks or 'no checks'})"


@final
@dataclass(frozen=True, eq=False, repr=False)
class SavedResult(Result):
    """Any result read back from its file."""

    kind: str
    axes: tuple[Axis, ...]
    unit: str
    checks: tuple[Check, ...]
    provenance: Provenance
    tensors: Mapping[str, Tensor]
    extra: Mapping[str, Any]

    @property
    @override
    def saved_as(self) -> str:
        return self.kind

    @override
    def values(self) -> Mapping[str, Tensor]:
        return self.tensors

    @override
    def details(self) -> Mapping[str, Any]:
        return self.extra

    @override
    def table(self) -> Table:
        first = next(iter(self.tensors.values()))
        return grid_table(self.axes, {next(iter(self.tensors)): first})


def load_result(file: str | Path) -> SavedResult:
    """Reads what `Result.save` wrote.

    Raises:
        FormatError: If the file is missing, truncated or no result.
    """
    try:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata() or {}
            header = json.loads(metadata[FORMAT])
            tensors = {name: stored.get_tensor(name) for name in header["values"]}
        saved = SavedResult(
            kind=header["kind"],
            axes=tuple(Axis(name, tuple(labels)) for name, labels in header["axes"]),
            unit=header["unit"],
            checks=tuple(Check(*check) for check in header["checks"]),
            provenance=Provenance(**header["provenance"]),
            tensors=tensors,
            extra=dict(header["details"]),
        )
        _check_saved(saved)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{file} is no saved result: {error}.") from None
    return saved


def _check_saved(saved: SavedResult) -> None:
    """Refuses a header that does not fit its tensors.

    Raises:
        ValueError: If a part is of the wrong kind, or the axes are not those of the first tensor.
    """
    texts = [saved.kind, saved.unit, *(axis.name for axis in saved.axes)]
    texts += [label for axis in saved.axes for label in axis.labels]
    texts += [text for check in saved.checks for text in (check.name, check.unit, check.note)]
    if not all(isinstance(text, str) for text in texts) or not saved.tensors:
        raise ValueError("its names must be texts, and it must hold a tensor")
    shape = tuple(len(axis.labels) for axis in saved.axes)
    first = next(iter(saved.tensors.values()))
    if tuple(first.shape) != shape:
        raise ValueError(f"axes of lengths {shape} do not fit values of {tuple(first.shape)}")


def grid_table(axes: Sequence[Axis], columns: Mapping[str, Tensor]) -> Table:
    """A table of values on a grid, one row per cell, the axes' labels first."""
    places = torch.cartesian_prod(*(torch.arange(len(axis.labels)) for axis in axes))
    places = places.reshape(-1, len(axes)).T.tolist()
    labels = {
        axis.name: [axis.labels[i] for i in where] for axis, where in zip(axes, places, strict=True)
    }
    return Table({**labels, **{name: value.flatten().tolist() for name, value in columns.items()}})


def _told(check: Check) -> str:
    if math.isnan(check.value):
        return f"{check.name} unknown"
    return f"{check.name} {_shown(check.value)} {check.unit}".rstrip()


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
