"""All rows, in memory: what a probe or a direction is fitted on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import AlignmentError
from workbench.core.reading import Where
from workbench.core.sinks.sink import check_rows
from workbench.core.sites import Site


@final
@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a site, in the order of the texts and of the positions within each."""

    rows: Float[Tensor, "row d"]
    where: Where


@final
class Rows:
    """Keeps every row, on the device it was read on; costs twice its bytes while it finishes."""

    def __init__(self) -> None:
        self.so_far: dict[Site, list[Table]] = {}

    def push(self, site: Site, rows: Float[Tensor, "row d"], where: Where) -> None:
        """Keeps the rows; no copy is made.

        Raises:
            ShapeError: If they do not fit to `where`, or to those before them.
        """
        before = self.so_far.get(site)
        check_rows(site, rows, where, before[0].rows.shape[1] if before else None)
        self.so_far.setdefault(site, []).append(Table(rows, where))

    def merge(self, other: "Rows") -> "Rows":
        """A sink with the rows of both."""
        both = Rows()
        for one in (self, other):
            for site, parts in one.so_far.items():
                both.so_far.setdefault(site, []).extend(parts)
        return both

    def finish(self) -> Mapping[Site, Table]:
        """The table of each site.

        Raises:
            AlignmentError: If a row was pushed twice.
        """
        return {site: _joined(site, parts) for site, parts in self.so_far.items()}


def _joined(site: Site, parts: list[Table]) -> Table:
    where = Where.joined(part.where for part in parts)
    order = where.row.argsort()
    where = where[order]
    twice = where.row[1:][where.row[1:] == where.row[:-1]].tolist()
    if twice:
        raise AlignmentError(f"{site}: {len(twice)} rows were pushed twice, such as {twice[0]}.")
    rows = torch.cat([part.rows for part in parts])
    return Table(rows[order.to(rows.device)], where)
