"""The largest values of each column, and which tokens they come from.

Notable: of equal values the row that comes first in the harvest wins, so the outcome depends on the
values alone: not on the order in which they were pushed, nor on how sinks were merged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.options import count, flag
from workbench.core.reading import Where
from workbench.core.sinks.sink import check_rows
from workbench.core.sites import Site


@final
@dataclass(frozen=True, eq=False)
class Top:
    """The k most extreme values of each column, the most extreme first; fewer if rows are fewer.

    `pos` and `token` are -1 where a row was pooled of several tokens.
    """

    values: Float[Tensor, "k d"]
    row: Int[Tensor, "k d"]
    text: Int[Tensor, "k d"]
    pos: Int[Tensor, "k d"]
    token: Int[Tensor, "k d"]


@final
class TopK:
    """Keeps the k largest values of each column, or the smallest; memory 5 k d numbers per site."""

    def __init__(self, k: int, *, largest: bool = True) -> None:
        self.k, self.largest = count("k", k), flag("largest", largest)
        self.so_far: dict[Site, Top] = {}

    def push(self, site: Site, rows: Float[Tensor, "row d"], where: Where) -> None:
        """Keeps what is among the most extreme so far.

        Raises:
            ShapeError: If the rows do not fit to `where`, or to those before them.
        """
        before = self.so_far.get(site)
        check_rows(site, rows, where, None if before is None else before.values.shape[1])
        if not len(rows):
            return
        signed = rows if self.largest else -rows
        block = _of_block(signed, where, self.k)
        self.so_far[site] = block if before is None else _joined(before, block, self.k)

    def merge(self, other: "TopK") -> "TopK":
        """A sink with the rows of both.

        Raises:
            OptionError: If they keep different numbers or ends.
        """
        if (self.k, self.largest) != (other.k, other.largest):
            raise OptionError("merge", "given two sinks of one kind", "other k or largest")
        both = TopK(self.k, largest=self.largest)
        both.so_far.update(self.so_far)
        for site, one in other.so_far.items():
            mine = both.so_far.get(site)
            both.so_far[site] = one if mine is None else _joined(mine, one, self.k)
        return both

    def finish(self) -> Mapping[Site, Top]:
        """The most extreme values of each site."""
        if self.largest:
            return dict(self.so_far)
        return {
            site: Top(-top.values, top.row, top.text, top.pos, top.token)
            for site, top in self.so_far.items()
        }


def _of_block(rows: Float[Tensor, "row d"], where: Where, k: int) -> Top:
    order = where.row.argsort()
    where, rows = where[order], rows[order.to(rows.device)]
    columns = torch.arange(rows.shape[1], device=rows.device)
    if len(rows) > k:
        chosen = _first_largest(rows, k).T.nonzero()[:, 1].reshape(-1, k).T  # k d
    else:
        chosen = torch.arange(len(rows), device=rows.device)[:, None].expand(-1, len(columns))
    from_where = (column.to(rows.device)[chosen] for column in _columns(where))
    return _sorted(Top(rows[chosen, columns], *from_where), k)


def _columns(where: Where) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return where.row, where.text, where.pos, where.token


def _first_largest(rows: Float[Tensor, "row d"], k: int) -> Bool[Tensor, "row d"]:
    """Exactly k entries of each column: its largest, and of equal ones the first."""
    least = rows.topk(k, dim=0, sorted=False).values.amin(0)
    above, equal = rows > least, rows == least
    room = k - above.sum(0)
    return above | (equal & (equal.cumsum(0) <= room))


def _joined(one: Top, other: Top, k: int) -> Top:
    pairs = zip(_fields(one), _fields(other), strict=True)
    return _sorted(Top(*(torch.cat(pair) for pair in pairs)), k)


def _fields(top: Top) -> tuple[Tensor, ...]:
    return top.values, top.row, top.text, top.pos, top.token


def _sorted(top: Top, k: int) -> Top:
    """By value, falling, and of equal ones by row; the first k."""
    by_row = top.row.argsort(0)
    values = top.values.gather(0, by_row)
    by_value = values.argsort(dim=0, descending=True, stable=True)[:k]
    order = by_row.gather(0, by_value)
    return Top(*(column.gather(0, order) for column in _fields(top)))
