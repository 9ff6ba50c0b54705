"""Confidence intervals of means and proportions: by resampling whole groups, and in closed form.

Notable: rows of one group are not independent; the bootstrap draws groups, all statistics share
its draws, and BCa corrects for bias and skew (Efron 1987, doi:10.1080/01621459.1987.10478410).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.special import ndtr, ndtri

from workbench.core.errors import EmptySelectionError, OptionError
from workbench.core.options import count, number

CHUNK = 8_000_000  # numbers held at once
COLUMNS = 4096  # statistics drawn together


def mean_interval(
    values: Float[Tensor, "row statistic"],
    *,
    level: float = 0.95,
    n_draws: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, " statistic"], Float[Tensor, " statistic"]]:
    """Low and high end for the mean of each column, by the bootstrap over rows (BCa).

    A column whose rows are all equal has an interval of no width. Of few rows it is too narrow, as
    every bootstrap is: at level 0.95 it covers the mean of 3 normal values 73 times in 100, of 5
    85 times, of 10 91 times, of 20 93 times.

    Raises:
        EmptySelectionError: If there are fewer than 2 rows.
        OptionError: If `level` is not between 0 and 1.
    """
    if not 0 < number("level", level) < 1:
        raise OptionError("level", "between 0 and 1", level)
    if len(values) < 2:
        raise EmptySelectionError(f"An interval needs 2 or more examples, got {len(values)}.")
    n_draws, seed = count("n_draws", n_draws), count("seed", seed, least=0)
    sizes = torch.ones(len(values), dtype=torch.double)
    ends = [
        torch.stack(_bootstrap(part.double(), sizes, level, n_draws, seed)[:2])
        for part in values.split(COLUMNS, dim=1)
    ]
    low, high = torch.cat(ends, 1)
    return low.to(values), high.to(values)


def grouped_interval(
    values: Float[Tensor, "row statistic"],
    groups: Int[Tensor, " row"],
    *,
    level: float = 0.95,
    n_draws: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, " statistic"], Float[Tensor, " statistic"]]:
    """Low and high end for the mean of each column, by the cluster bootstrap (BCa).

    Where every draw is the same (all rows right, say) it is Wilson's interval, one trial a group.
    """
    group = groups.unique(return_inverse=True)[1]
    sizes = torch.bincount(group).double()
    sums = torch.zeros(len(sizes), values.shape[1], dtype=torch.double)
    sums.index_add_(0, group, values.double())
    estimate = sums.sum(0) / sizes.sum()
    low, high, flat = _bootstrap(sums, sizes, level, n_draws, seed)
    exact = [wilson(float(p) * len(sizes), len(sizes), level=level) for p in estimate]
    spare = torch.tensor(exact, dtype=torch.double).T
    return torch.where(flat, spare[0], low), torch.where(flat, spare[1], high)


def wilson(successes: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of `n` independent trials (Wilson 1927).

    >>> low, high = wilson(8.0, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    z = float(ndtri(torch.tensor((1 + level) / 2, dtype=torch.double)))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and at n that end is exact in the formula, but not once it is rounded.
    low, high = 0.0 if p <= 0 else centre - half, 1.0 if p >= 1 else centre + half
    return max(0.0, low), min(1.0, high)


def _bootstrap(
    sums: Tensor, sizes: Tensor, level: float, n_draws: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Low and high ends, and where every draw is the same."""
    draws = _draws(sums, sizes, n_draws, seed).sort(0).values
    estimate = sums.sum(0) / sizes.sum()
    low, high = _bca(draws, estimate, _acceleration(sums, sizes), level)
    flat = draws[0] == draws[-1]
    return torch.where(flat, draws[0], low), torch.where(flat, draws[0], high), flat


def _draws(sums: Tensor, sizes: Tensor, n_draws: int, seed: int) -> Float[Tensor, "draw statistic"]:
    """The estimate on groups drawn with replacement, many draws as one product."""
    generator, count = torch.Generator().manual_seed(seed), len(sizes)
    drawn: list[Tensor] = []
    for start in range(0, n_draws, max(1, CHUNK // count)):
        rows = min(max(1, CHUNK // count), n_draws - start)
        picks = torch.randint(count, (rows, count), generator=generator)
        times = torch.zeros(rows, count, dtype=torch.double)
        times.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.double))
        drawn.append((times @ sums) / (times @ sizes)[:, None])
    return torch.cat(drawn)


def _acceleration(sums: Tensor, sizes: Tensor) -> Float[Tensor, " statistic"]:
    """How fast the spread changes with the estimate, from leaving out one group at a time."""
    without = (sums.sum(0) - sums) / (sizes.sum() - sizes).clamp(min=1)[:, None]
    change = without.mean(0) - without
    spread = change.square().sum(0).clamp(min=torch.finfo(change.dtype).tiny)
    return change.pow(3).sum(0) / (6 * spread.pow(1.5))


def _bca(
    draws: Tensor, estimate: Tensor, acceleration: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    below = (draws < estimate).double().mean(0) + (draws == estimate).double().mean(0) / 2
    bias = ndtri(below.clamp(1 / (len(draws) + 1), 1 - 1 / (len(draws) + 1)))
    ends: list[Tensor] = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + ndtri(torch.tensor(tail, dtype=torch.double))
        ends.append(_quantile(draws, ndtr(bias + z / (1 - acceleration * z))))
    return ends[0], ends[1]


def _quantile(ordered: Tensor, share: Float[Tensor, " statistic"]) -> Float[Tensor, " statistic"]:
    """Each column's own quantile, between neighbours by a straight line."""
    place = share * (len(ordered) - 1)
    low = place.floor().long().clamp(0, len(ordered) - 2)
    pair = ordered.gather(0, torch.stack([low, low + 1]))
    return pair[0] + (place - low) * (pair[1] - pair[0])
