"""Logistic probe: -log p(y) summed over the rows, plus ½ λ ‖w‖²; λ chosen on inner folds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from probes.basis import Basis, basis
from probes.folds import folds, most_folds
from probes.linear import Fit, linear_probes, scores
from probes.method import Probe, ProbeMethod
from probes.solver import Problems, Solutions, margin_loss, solve
from workbench.core.errors import OptionError
from workbench.core.result import Check

INNER_TOLERANCE = 1e-4  # of the summed loss: far below what tells one penalty from the next


@final
@dataclass(frozen=True)
class Logistic(ProbeMethod):
    """The regularised logistic probe, binary or multinomial, on standardised rows.

    `penalties` are λ per row (scikit-learn's C is 1 / (λ n)), of which the one with the least
    held-out loss over `inner_folds` is taken. A fit is within `tolerance` (1 + |f|) of its
    minimum, by its duality gap, or raises.
    """

    penalties: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    inner_folds: int = 5
    tolerance: float = 1e-8
    source: ClassVar[str] = "Alain & Bengio 2016, arXiv:1610.01644"

    def __post_init__(self) -> None:
        if not self.penalties or min(self.penalties) <= 0:
            raise OptionError("penalties", "one or more numbers above 0", self.penalties)

    @override
    def solve(
        self,
        x: Float[Tensor, "row d"],
        columns: Int[Tensor, "column row"],
        groups: Int[Tensor, " row"],
    ) -> Sequence[Probe]:
        own, n_classes = basis(x), int(columns.max()) + 1
        loss, accuracy = self._held_out(own, columns[0], groups, n_classes)
        best = int(loss.argmin())
        penalty = torch.full((len(columns),), self.penalties[best] * len(x), dtype=torch.double)
        everything = torch.ones_like(columns, dtype=torch.double)
        problems = Problems(own.z, own.scale, columns, everything, penalty, n_classes)
        found = solve(problems, tolerance=self.tolerance)
        weight, bias = own.raw(found.weight, found.bias)
        checks = [self._checks(found, column, best) for column in range(len(columns))]
        fit = Fit(weight, bias, float(accuracy[best]), checks)
        return linear_probes(x, columns, fit, method="Logistic", source=self.source)

    def _held_out(
        self, own: Basis, y: Tensor, groups: Tensor, n_classes: int
    ) -> tuple[Float[Tensor, " penalty"], Float[Tensor, " penalty"]]:
        """Mean loss and accuracy of each penalty on the inner folds, all fitted as one batch."""
        n_folds = min(self.inner_folds, most_folds(y, groups))
        fold = folds(y, groups, n_folds)
        counted = (fold != torch.arange(n_folds)[:, None]).double()
        counted = counted.repeat(len(self.penalties), 1)  # (penalty fold) row
        per_row = torch.tensor(self.penalties, dtype=torch.double).repeat_interleave(n_folds)
        labels, penalty = y.expand(len(counted), -1), per_row * counted.sum(1)
        problems = Problems(own.z, own.scale, labels, counted, penalty, n_classes)
        margins = solve(problems, tolerance=INNER_TOLERANCE).margins
        loss = margin_loss(margins, labels) * (1 - counted)
        right = (scores(margins.transpose(1, 2)).argmax(-1) == labels) * (1 - counted)
        shape = (len(self.penalties), n_folds)
        return _mean(loss, shape), _mean(right, shape)

    def _checks(self, found: Solutions, column: int, best: int) -> tuple[Check, ...]:
        edge = best in (0, len(self.penalties) - 1) and len(self.penalties) > 1
        note = "at an edge of its grid: widen `penalties`" if edge else "inside its grid"
        bound = "bounds how far the fit is from its minimum"
        return (
            Check("duality gap", float(found.gap[column]), "nats", bound),
            Check("largest slope", float(found.slope[column]), "nats", "0 at the minimum"),
            Check("penalty", self.penalties[best], "per row", note),
        )


def _mean(values: Float[Tensor, "problem row"], shape: tuple[int, int]) -> Tensor:
    """Over all rows, each counted in the one fold that holds it out."""
    return values.sum(1).reshape(shape).sum(1) / values.shape[1]


METHOD = Logistic()
