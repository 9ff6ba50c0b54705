"""Mean and covariance in one pass.

Notable: each block of rows is centred on its own mean and joined by Chan's formula, all in float64,
so neither a large mean nor many rows cost precision: rows near 2,500 with a spread of 100 keep
their covariance to 13 digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.core.errors import EmptySelectionError, OptionError
from workbench.core.options import flag
from workbench.core.reading import Where
from workbench.core.sinks.sink import check_rows
from workbench.core.sites import Site


@final
@dataclass(frozen=True, eq=False)
class Statistics:
    """The moments of the rows of a site, in the activation's unit and its square."""

    n: int
    mean: Float64[Tensor, " d"]
    scatter: Float64[Tensor, "d d"] | None  # sum of (x - mean)(x - mean)^T; None: not asked for
    squares: Float64[Tensor, " d"]  # its diagonal

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance.

        Raises:
            OptionError: If only variances were taken.
            EmptySelectionError: If there are fewer than two rows.
        """
        if self.scatter is None:
            raise OptionError("covariance", "asked for: Moments(covariance=True)", "variances only")
        return self.scatter / self._degrees()

    @property
    def variance(self) -> Float64[Tensor, " d"]:
        """The unbiased variance of each column.

        Raises:
            EmptySelectionError: If there are fewer than two rows.
        """
        return self.squares / self._degrees()

    def _degrees(self) -> int:
        if self.n < 2:
            raise EmptySelectionError(f"A spread needs two rows or more, got {self.n}.")
        return self.n - 1


@final
class Moments:
    """Adds up mean and scatter at each site: 2 d² operations per row, or d without covariance."""

    def __init__(self, *, covariance: bool = True) -> None:
        self.covariance = flag("covariance", covariance)
        self.so_far: dict[Site, Statistics] = {}

    def push(self, site: Site, rows: Float[Tensor, "row d"], where: Where) -> None:
        """Adds the rows.

        Raises:
            ShapeError: If they do not fit to `where`, or to those before them.
        """
        before = self.so_far.get(site)
        check_rows(site, rows, where, None if before is None else len(before.mean))
        if not len(rows):
            return
        block = _of_block(rows.double(), covariance=self.covariance)
        self.so_far[site] = block if before is None else _joined(before, block)

    def merge(self, other: "Moments") -> "Moments":
        """A sink with the rows of both.

        Raises:
            OptionError: If only one of them takes covariances.
        """
        if self.covariance != other.covariance:
            raise OptionError("merge", "given two sinks of one kind", "one without covariance")
        both = Moments(covariance=self.covariance)
        both.so_far.update(self.so_far)
        for site, one in other.so_far.items():
            mine = both.so_far.get(site)
            both.so_far[site] = one if mine is None else _joined(mine, one)
        return both

    def finish(self) -> Mapping[Site, Statistics]:
        """The statistics of each site."""
        return dict(self.so_far)


def _of_block(rows: Float64[Tensor, "row d"], *, covariance: bool) -> Statistics:
    mean = rows.mean(0)
    centred = rows - mean
    scatter = centred.T @ centred if covariance else None
    return Statistics(len(rows), mean, scatter, (centred**2).sum(0))


def _joined(one: Statistics, other: Statistics) -> Statistics:
    """Chan, Golub & LeVeque 1979: the scatter of two sets and the distance of their means."""
    n = one.n + other.n
    apart = other.mean - one.mean
    weight = one.n * other.n / n
    scatter = None
    if one.scatter is not None and other.scatter is not None:
        scatter = one.scatter + other.scatter + weight * torch.outer(apart, apart)
    squares = one.squares + other.squares + weight * apart**2
    return Statistics(n, one.mean + apart * (other.n / n), scatter, squares)
