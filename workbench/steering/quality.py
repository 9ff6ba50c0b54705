"""The quality card of a direction: is there one at all, and is it the texts' or chance's?

All of it from the rows at hand, without another forward.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.result import Check

Rows = Float[Tensor, "_text d"]  # both sides may have as many as they like
Fit = Callable[[Rows, Rows], Float[Tensor, " d"]]
DRAWS = 500
SPLITS = 50
FEWEST = 4  # texts a side for a held-out spread: two to fit on, two to judge


def quality(fit: Fit, positive: Rows, negative: Rows) -> tuple[Check, ...]:
    """Held-out separation, split-half agreement, and a permutation test of the mean difference."""
    draws = torch.Generator().manual_seed(0)
    return (
        Check(
            "held-out d'",
            _separation(fit, positive, negative, draws),
            "spreads",
            "distance of the classes along a direction fitted without them; above 2 is clear, "
            f"unknown below {FEWEST} texts a side",
        ),
        Check(
            "split-half cosine",
            _split_half(fit, positive, negative, draws),
            "",
            "two directions from halves of the texts; 1 if they agree, near 0 by chance",
        ),
        Check(
            "p of chance",
            _permutation(positive, negative, draws),
            "",
            "share of relabelled texts whose means lie as far apart; small is good",
        ),
    )


def _separation(fit: Fit, positive: Rows, negative: Rows, draws: torch.Generator) -> float:
    """D' over random halves: a gap and a spread of texts that the direction has not seen.

    Both are averaged over the halves before one is divided by the other: on noise its mean is 0,
    and no single half with a small spread decides. NaN below four texts on a side, where a spread
    along a direction has next to no degrees of freedom.
    """
    if min(len(positive), len(negative)) < FEWEST:
        return float("nan")
    gaps, variances = [], []
    for _ in range(SPLITS):
        (fit_yes, yes), (fit_no, no) = _halves(positive, draws), _halves(negative, draws)
        vector = fit(fit_yes, fit_no)
        unit = vector / torch.linalg.vector_norm(vector).clamp(min=1e-12)
        a, b = yes @ unit, no @ unit
        gaps.append(a.mean() - b.mean())
        variances.append((a.var() + b.var()) / 2)
    spread = torch.stack(variances).mean().sqrt().clamp(min=1e-12)
    return float(torch.stack(gaps).mean() / spread)


def _halves(rows: Rows, draws: torch.Generator) -> tuple[Rows, Rows]:
    shuffled = rows[torch.randperm(len(rows), generator=draws)]
    return shuffled[: len(rows) // 2], shuffled[len(rows) // 2 :]


def _split_half(fit: Fit, positive: Rows, negative: Rows, draws: torch.Generator) -> float:
    cosines = []
    for _ in range(SPLITS):
        (yes, more_yes), (no, more_no) = _halves(positive, draws), _halves(negative, draws)
        one, other = fit(yes, no), fit(more_yes, more_no)
        cosines.append(float(torch.cosine_similarity(one, other, dim=0)))
    return sum(cosines) / len(cosines)


def _permutation(positive: Rows, negative: Rows, draws: torch.Generator) -> float:
    """(1 + #{relabelled gap >= gap}) / (draws + 1), the gap being the norm of the difference."""
    both = torch.cat([positive, negative]).double()
    both = both - both.mean(0)
    n, k = len(both), len(positive)
    weights = torch.full((n,), -1 / (n - k), dtype=torch.float64)
    weights[:k] = 1 / k
    shuffled = torch.stack([weights[torch.randperm(n, generator=draws)] for _ in range(DRAWS)])
    gaps = torch.linalg.vector_norm(shuffled @ both, dim=-1)
    gap = torch.linalg.vector_norm(weights @ both) * (1 - 1e-9)  # a relabelling may be the same one
    return float((1 + (gaps >= gap).sum()) / (DRAWS + 1))
