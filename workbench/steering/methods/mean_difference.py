"""Difference of means: v = mean of the positive rows - mean of the negative ones."""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.steering.method import Rows, SteeringMethod


@final
@dataclass(frozen=True)
class MeanDifference(SteeringMethod):
    """v = mean(h+) - mean(h-); not centred, not scaled: the usual vector to write with."""

    source: ClassVar[str] = "Marks & Tegmark 2023, arXiv:2310.06824; Rimsky et al. 2023, 2312.06681"

    @override
    def vector(self, positive: Rows, negative: Rows) -> Float[Tensor, " d"]:
        return positive.mean(0) - negative.mean(0)


METHOD = MeanDifference()
