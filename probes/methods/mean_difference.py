"""Mass-mean probe: the difference of the class means, cut at their midpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from probes.folds import folds, most_folds
from probes.linear import Fit, linear_probes, scores
from probes.method import Probe, ProbeMethod
from workbench.core.options import count


@final
@dataclass(frozen=True)
class MeanDifference(ProbeMethod):
    """w = mean of class 1 - mean of class 0; with more classes, the nearest mean.

    Nothing is whitened, so on rows that vary much along other directions it reads far worse than
    the logistic probe.
    """

    inner_folds: int = 5
    source: ClassVar[str] = "Marks & Tegmark 2023, arXiv:2310.06824"

    def __post_init__(self) -> None:
        count("inner_folds", self.inner_folds, least=2)

    @override
    def solve(
        self,
        x: Float[Tensor, "row d"],
        columns: Int[Tensor, "column row"],
        groups: Int[Tensor, " row"],
    ) -> Sequence[Probe]:
        n_classes = int(columns.max()) + 1
        weight, bias = _nearest_mean(x, columns, n_classes)
        accuracy = self._inner_accuracy(x, columns[0], groups, n_classes)
        fit = Fit(weight, bias, accuracy, [()] * len(columns))
        return linear_probes(x, columns, fit, method="MeanDifference", source=self.source)

    def _inner_accuracy(self, x: Tensor, y: Tensor, groups: Tensor, n_classes: int) -> float:
        n_folds = min(self.inner_folds, most_folds(y, groups))
        fold = folds(y, groups, n_folds)
        right = torch.zeros(len(y), dtype=torch.bool)
        for held_out in (fold == index for index in range(n_folds)):
            weight, bias = _nearest_mean(x[~held_out], y[None, ~held_out], n_classes)
            margins = x[held_out] @ weight[0].T + bias[0]
            right[held_out] = scores(margins).argmax(-1) == y[held_out]
        return float(right.double().mean())


def _nearest_mean(
    x: Float[Tensor, "row d"], columns: Int[Tensor, "column row"], n_classes: int
) -> tuple[Float[Tensor, "column margin d"], Float[Tensor, "column margin"]]:
    """Margins w·x + b that are highest for the class with the nearest mean."""
    member = one_hot(columns, n_classes).to(x)  # column row class
    mean = torch.einsum("crk,rd->ckd", member, x) / member.sum(1)[..., None]
    bias = -mean.square().sum(-1) / 2
    if n_classes > 2:
        return mean - x.mean(0), bias
    return mean[:, 1:] - mean[:, :1], bias[:, 1:] - bias[:, :1]


METHOD = MeanDifference()
