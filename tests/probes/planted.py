"""Data whose best possible probe is known."""

import torch
from torch import Tensor

from probes.data import TextData

BAYES = 0.8413  # of two Gaussians a Mahalanobis distance of 2 apart


def gaussian_pair(
    n: int, d: int, *, anisotropic: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, labels and the difference of the class means, two spreads long."""
    draws = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, 2, d, dtype=torch.double) if anisotropic else torch.ones(d).double()
    delta = scale * 2 / d**0.5
    y = torch.arange(n) % 2
    noise = torch.randn(n, d, generator=draws, dtype=torch.double) * scale
    return noise + y[:, None] * delta, y, delta


def labelled(n: int, d: int, n_classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated rows of unlike scale, and labels that a noisy linear map gives."""
    draws = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=draws, dtype=torch.double)
    x = torch.randn(n, d, generator=draws, dtype=torch.double) @ mix + 5
    truth = torch.randn(d, n_classes, generator=draws, dtype=torch.double)
    noise = torch.randn(n, n_classes, generator=draws, dtype=torch.double)
    return x, ((x - 5) @ truth + 3 * noise * d**0.5).argmax(1)


def one_sided(n_classes: int, *, n: int = 40, d: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows that one direction cuts in two, and labels that all differ on one side of it.

    As where texts share a template: along that direction the rows that decide the fit all lie on
    one side, so that the bias and the weights must move together.
    """
    draws = torch.Generator().manual_seed(seed)
    side, own = torch.arange(n) % 2, torch.arange(n) // 2 % n_classes
    away = 10 * torch.randn(d, generator=draws, dtype=torch.double)
    words = torch.randn(n, d, generator=draws, dtype=torch.double)
    return words + side[:, None] * away, side * own


def letters(n: int, *, at: int, seed: int = 0, groups: int | None = None) -> TextData:
    """Texts of random letters; the label says on which half of the alphabet letter `at` is."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randint(26, (n, 8), generator=draws)
    return TextData(
        name="letters",
        texts=tuple("".join(chr(97 + int(i)) for i in row) for row in rows),
        labels=tuple((rows[:, at] >= 13).long().tolist()),
        label_names=("a-m", "n-z"),
        groups=tuple(i % (groups or n) for i in range(n)),
    )
