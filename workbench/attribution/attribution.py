"""The result of an attribution method: scores with named axes, and how far they can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.core.provenance import Provenance
from workbench.core.result import Axis, Check, Result, Table, grid_table

Kind = Literal["contribution", "effect"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """Scores of the parts of a model over a contrast.

    A `contribution` is the part of the metric credited to a component: what supports the target is
    positive. An `effect` is metric(changed) - metric(base): knocking out what supports it is
    negative. The two are never mixed. `scores` is the mean of `per_example`.
    """

    per_example: Float[Tensor, "example ..."]
    axes: tuple[Axis, ...]
    unit: str
    kind: Kind
    metric: str
    base: Float[Tensor, " example"]  # the metric before any change
    donor: Float[Tensor, " example"]  # the metric of the other prompt
    checks: tuple[Check, ...]
    provenance: Provenance

    @property
    def scores(self) -> Float[Tensor, "..."]:
        """The mean over examples, with `axes`."""
        return self.per_example.mean(0)

    @property
    def standard_error(self) -> Float[Tensor, "..."]:
        """Of the mean over examples; NaN where there is only one."""
        if len(self.per_example) == 1:
            return torch.full_like(self.scores, float("nan"))
        return self.per_example.std(0) / len(self.per_example) ** 0.5

    def top(self, count: int = 10) -> Table:
        """The largest scores by size, with their places, the largest first."""
        table = grid_table(self.axes, {"score": self.scores})
        sizes = self.scores.flatten().nan_to_num(0).abs()
        order = sizes.argsort(descending=True, stable=True)[:count].tolist()
        return Table({name: [column[i] for i in order] for name, column in table.columns.items()})

    @override
    def values(self) -> Mapping[str, Tensor]:
        return {
            "scores": self.scores,
            "per_example": self.per_example,
            "base": self.base,
            "donor": self.donor,
        }

    @override
    def details(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "metric": self.metric}

    @override
    def table(self) -> Table:
        return grid_table(self.axes, {"score": self.scores, "standard_error": self.standard_error})
