"""Counts between fixed edges, by column; sums of integers, so a merge is exact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.options import iterated, number
from workbench.core.reading import Where
from workbench.core.sinks.sink import check_rows
from workbench.core.sites import Site


@final
@dataclass(frozen=True, eq=False)
class Histograms:
    """How many values of each column lie between two edges; each bin holds its lower edge."""

    edges: Float[Tensor, " edge"]
    counts: Int[Tensor, "d bin"]  # one bin fewer than edges
    below: Int[Tensor, " d"]  # of the first edge
    above: Int[Tensor, " d"]  # the last edge, or above it

    def quantile(self, share: float) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The edges between which each column's quantile lies: the value of rank ceil(share * n).

        Infinite where it lies outside the edges.

        Raises:
            OptionError: If `share` is not between 0 and 1.
        """
        if not 0 <= number("share", share) <= 1:
            raise OptionError("share", "between 0 and 1", share)
        counts = torch.cat([self.below[:, None], self.counts, self.above[:, None]], dim=1)
        reached = counts.cumsum(1)
        rank = (share * reached[:, -1:]).ceil().clamp(min=1)
        bins = (reached < rank).sum(1).clamp(max=counts.shape[1] - 1)
        end = self.edges.new_full((1,), float("inf"))
        ends = torch.cat([-end, self.edges, end])
        return ends[bins], ends[bins + 1]


@final
class Histogram:
    """Counts values between edges that rise, at each site and in each column."""

    def __init__(self, edges: Sequence[float] | Float[Tensor, " edge"]) -> None:
        values = [number("edges", edge) for edge in iterated("edges", edges)]
        if len(values) < 2 or any(b <= a for a, b in pairwise(values)):
            raise OptionError("edges", "two or more, each above the one before", values)
        self.edges = torch.tensor(values, dtype=torch.float64)
        self.so_far: dict[Site, Tensor] = {}  # d (bins, and one beyond each end)

    def push(self, site: Site, rows: Float[Tensor, "row d"], where: Where) -> None:
        """Counts the rows.

        Raises:
            ShapeError: If they do not fit to `where`, or to those before them.
        """
        n_bins, width = len(self.edges) + 1, rows.shape[1]
        before = self.so_far.get(site)
        check_rows(site, rows, where, None if before is None else len(before))
        edges = self.edges.to(rows.device)
        bins = torch.bucketize(rows.double(), edges, right=True)  # row d; 0: below the first
        columns = torch.arange(width, device=rows.device) * n_bins
        counts = torch.bincount((bins + columns).flatten(), minlength=width * n_bins)
        counts = counts.reshape(width, n_bins)
        self.so_far[site] = counts if before is None else before + counts

    def merge(self, other: "Histogram") -> "Histogram":
        """A sink with the rows of both.

        Raises:
            OptionError: If their edges differ.
        """
        if not torch.equal(self.edges, other.edges):
            raise OptionError("merge", "given two histograms with the same edges", "other edges")
        both = Histogram(self.edges)
        both.so_far.update(self.so_far)
        for site, counts in other.so_far.items():
            mine = both.so_far.get(site)
            both.so_far[site] = counts if mine is None else mine + counts
        return both

    def finish(self) -> Mapping[Site, Histograms]:
        """The counts of each site."""
        return {
            site: Histograms(self.edges, counts[:, 1:-1], counts[:, 0], counts[:, -1])
            for site, counts in self.so_far.items()
        }
