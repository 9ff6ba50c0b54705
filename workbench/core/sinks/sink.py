"""What takes in rows as they are read."""

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import OptionError, ShapeError
from workbench.core.options import iterated
from workbench.core.reading import Where
from workbench.core.sites import Site

Outcome = TypeVar("Outcome", covariant=True)
Own = TypeVar("Own")  # a sink merges with its own kind


@runtime_checkable
class Sink(Protocol[Outcome]):
    """Takes in rows and gives one outcome, the same in whatever pieces and order they came.

    Any class with these three methods is one. A sink belongs to one thread. `merge` joins what two
    have taken in and changes neither, so that threads and processes may each fill their own; it is
    associative.
    """

    def push(self, site: Site, rows: Float[Tensor, "row d"], where: Where) -> None:
        """Takes in some rows of a site; it may keep them, and never writes into them."""
        ...

    def merge(self: Own, other: Own) -> Own:
        """A sink that has taken in what both have."""
        ...

    def finish(self) -> Outcome:
        """What came of it; more may be pushed afterwards."""
        ...


def sinks_of(sinks: Sink[object] | Iterable[Sink[object]]) -> tuple[Sink[object], ...]:
    """One sink or several.

    Raises:
        OptionError: If something else is among them, such as a sink's class.
    """
    parts = (sinks,) if isinstance(sinks, Sink) else tuple(iterated("sinks", sinks))
    for part in parts:
        wanted = "sinks, made: Moments(), or anything with push, merge and finish"
        if isinstance(part, type) or not isinstance(part, Sink):
            raise OptionError("sinks", wanted, part)
    return parts


def push_all(
    sinks: Iterable[Sink[object]], rows: Mapping[Site, Float[Tensor, "row _d"]], where: Where
) -> None:
    """Pushes the rows of every site into every sink."""
    for site, values in rows.items():
        for sink in sinks:
            sink.push(site, values, where)


def check_rows(site: Site, rows: Float[Tensor, "row d"], where: Where, width: int | None) -> None:
    """Refuses rows that do not fit to what is said of them, or to those before them.

    Raises:
        ShapeError: If they do not.
    """
    if len(where) != len(rows):
        raise ShapeError(f"rows of {site}", f"{len(where)}, as `where` tells", str(len(rows)))
    if width is not None and rows.shape[1] != width:
        raise ShapeError(f"rows of {site}", f"{width} columns, as before", str(rows.shape[1]))
