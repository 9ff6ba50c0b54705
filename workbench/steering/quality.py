"""The quality card of a direction: is there one at all, and is it the texts' or chance's?

All of it from the rows at hand, without another forward.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.result import Check

Rows = Float[Tensor, "text d"]
Fit = Callable[[Rows, Rows], Float[Tensor, " d"]]
DRAWS = 500
SPLITS = 50


def quality(fit: Fit, positive: Rows, negative: Rows) -> tuple[Check, ...]:
    """Held-out separation, split-half agreement, and a permutation test of the mean difference."""
    draws = torch.Generator().manual_seed(0)
    return (
        Check(
            "held-out d'",
            _separation(fit, positive, negative),
            "spreads",
            "distance of the classes along a direction fitted without them; above 2 is clear",
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


def _separation(fit: Fit, positive: Rows, negative: Rows) -> float:
    """D' over two folds: each text is scored along a direction fitted on the other fold.

    The two folds' scores are centred on their fold's training midpoint and divided by its gap, so
    that they can be pooled.
    """
    yes, no = [], []
    for even in (0, 1):
        train_yes, train_no = positive[1 - even :: 2], negative[1 - even :: 2]
        vector = fit(train_yes, train_no)
        unit = vector / torch.linalg.vector_norm(vector).clamp(min=1e-12)
        middle = (train_yes.mean(0) + train_no.mean(0)) @ unit / 2
        size = ((train_yes.mean(0) - train_no.mean(0)) @ unit).abs().clamp(min=1e-12)
        yes.append((positive[even::2] @ unit - middle) / size)
        no.append((negative[even::2] @ unit - middle) / size)
    a, b = torch.cat(yes), torch.cat(no)
    spread = ((a.var() + b.var()) / 2).sqrt().clamp(min=1e-12)
    return float((a.mean() - b.mean()) / spread)


def _split_half(fit: Fit, positive: Rows, negative: Rows, draws: torch.Generator) -> float:
    cosines = []
    for _ in range(SPLITS):
        yes = positive[torch.randperm(len(positive), generator=draws)]
        no = negative[torch.randperm(len(negative), generator=draws)]
        half = (len(yes) // 2, len(no) // 2)
        one, other = fit(yes[: half[0]], no[: half[1]]), fit(yes[half[0] :], no[half[1] :])
        cosines.append(float(torch.cosine_similarity(one, other, dim=0)))
    return sum(cosines) / len(cosines)


def _permutation(positive: Rows, negative: Rows, draws: torch.Generator) -> float:
    """(1 + #{relabelled gap >= gap}) / (draws + 1), the gap being the norm of the difference."""
    both = torch.cat([positive, negative])
    both = both - both.mean(0)
    n, k = len(both), len(positive)
    weights = torch.full((n,), -1 / (n - k))
    weights[:k] = 1 / k
    shuffled = torch.stack([weights[torch.randperm(n, generator=draws)] for _ in range(DRAWS)])
    gaps = torch.cdist(shuffled @ both, torch.zeros(1, both.shape[1]))[:, 0]
    gap = torch.linalg.vector_norm(positive.mean(0) - negative.mean(0))
    return float((1 + (gaps >= gap).sum()) / (DRAWS + 1))
