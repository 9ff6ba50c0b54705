"""Logistic probe: -log p(y) summed over the rows, plus ½ λ ‖w‖²; λ chosen on inner folds."""

from collections.abc import Iterator, Sequence
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
from workbench.core.options import count, iterated, number
from workbench.core.result import Check

INNER_TOLERANCE = 1e-4  # of the summed loss: far below what tells one penalty from the next
PAIR = 2  # penalties tried at a time, after the stronger half


@final
@dataclass(frozen=True)
class _Choice:
    """A penalty and what it is worth on inner folds."""

    penalty: float
    loss: float
    accuracy: float

    def by_loss(self) -> float:
        """What the least of is chosen."""
        return self.loss


@final
@dataclass(frozen=True)
class Logistic(ProbeMethod):
    """The regularised logistic probe, binary or multinomial, on standardised rows.

    `penalties` are λ per row (scikit-learn's C is 1 / (λ n)), of which the one with the least
    held-out loss over `inner_folds` is taken; they are tried from the strongest on, and weaker
    ones, which cost the most, only while the loss still falls. A fit is within `tolerance`
    (1 + |f|) of its minimum, by its duality gap, or raises.
    """

    penalties: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    inner_folds: int = 5
    tolerance: float = 1e-8
    source: ClassVar[str] = "Alain & Bengio 2016, arXiv:1610.01644"

    def __post_init__(self) -> None:
        penalties = tuple(number("penalties", one) for one in iterated("penalties", self.penalties))
        if not penalties or min(penalties) <= 0:
            raise OptionError("penalties", "one or more numbers above 0", self.penalties)
        if number("tolerance", self.tolerance) <= 0:
            raise OptionError("tolerance", "above 0", self.tolerance)
        count("inner_folds", self.inner_folds, least=2)
        object.__setattr__(self, "penalties", penalties)

    @override
    def solve(
        self,
        x: Float[Tensor, "row d"],
        columns: Int[Tensor, "column row"],
        groups: Int[Tensor, " row"],
    ) -> Sequence[Probe]:
        own, n_classes = basis(x), int(columns.max()) + 1
        chosen = self._choose(own, columns[0], groups)
        penalty = torch.full((len(columns),), chosen.penalty * len(x), dtype=torch.double)
        everything = torch.ones_like(columns, dtype=torch.double)
        problems = Problems(own.z, own.scale, columns, everything, penalty, n_classes)
        found = solve(problems, tolerance=self.tolerance)
        weight, bias = own.raw(found.weight, found.bias)
        checks = [self._checks(found, column, chosen) for column in range(len(columns))]
        fit = Fit(weight, bias, chosen.accuracy, checks)
        return linear_probes(x, columns, fit, method="Logistic", source=self.source)

    def _choose(self, own: Basis, y: Int[Tensor, " row"], groups: Int[Tensor, " row"]) -> _Choice:
        n_folds = min(self.inner_folds, most_folds(y, groups))
        fold = folds(y, groups, n_folds)
        tried: list[_Choice] = []
        for part in _parts(sorted(self.penalties, reverse=True)):
            tried += _held_out(own, y, fold, part)
            if min(tried, key=_Choice.by_loss) not in tried[-len(part) :]:
                break
        return min(tried, key=_Choice.by_loss)  # the strongest of equals

    def _checks(self, found: Solutions, column: int, chosen: _Choice) -> tuple[Check, ...]:
        ends = (min(self.penalties), max(self.penalties))
        edge = chosen.penalty in ends and len(self.penalties) > 1
        note = "at an edge of its grid: widen `penalties`" if edge else "inside its grid"
        bound = "bounds how far the fit is from its minimum"
        return (
            Check("duality gap", float(found.gap[column]), "nats", bound),
            Check("largest slope", float(found.slope[column]), "nats", "0 at the minimum"),
            Check("penalty", chosen.penalty, "per row", note),
        )


def _parts(penalties: Sequence[float]) -> Iterator[Sequence[float]]:
    """The stronger half, then two at a time."""
    half = max(PAIR, len(penalties) // 2)
    yield penalties[:half]
    for start in range(half, len(penalties), PAIR):
        yield penalties[start : start + PAIR]


def _held_out(
    own: Basis, y: Int[Tensor, " row"], fold: Int[Tensor, " row"], penalties: Sequence[float]
) -> list[_Choice]:
    """Mean loss and accuracy of some penalties on rows held out, all fitted as one batch."""
    n_folds, n_classes = int(fold.max()) + 1, int(y.max()) + 1
    counted = (fold != torch.arange(n_folds)[:, None]).double()
    counted = counted.repeat(len(penalties), 1)  # (penalty fold) row
    per_row = torch.tensor(penalties, dtype=torch.double).repeat_interleave(n_folds)
    labels, penalty = y.expand(len(counted), -1), per_row * counted.sum(1)
    problems = Problems(own.z, own.scale, labels, counted, penalty, n_classes)
    margins = solve(problems, tolerance=INNER_TOLERANCE).margins
    loss = margin_loss(margins, labels) * (1 - counted)
    right = (scores(margins.transpose(1, 2)).argmax(-1) == labels) * (1 - counted)
    shape = (len(penalties), n_folds)
    means = (values.mean(1).reshape(shape).sum(1).tolist() for values in (loss, right))
    return [_Choice(*one) for one in zip(penalties, *means, strict=True)]


METHOD = Logistic()
