"""Directions: a vector at a site, with what it takes to use it and to judge it.

Probes and steering methods make them; `direction.at(strength, unit)` is an intervention.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.core import operators
from workbench.core.errors import OptionError
from workbench.core.interventions import Intervention
from workbench.core.place import Where
from workbench.core.provenance import Provenance
from workbench.core.result import Axis, Check, Result, Table
from workbench.core.sites import Site

Unit = Literal["raw", "gap", "sigma", "norm"]


@final
@dataclass(frozen=True, eq=False)
class Direction(Result):
    """A vector at a site in raw activation space, with the sizes its strengths can be counted in.

    `gap` is the distance of the class means along the direction, `sigma` the spread of all rows
    along it, `norm` the mean norm of a row; each in the activation's own unit.
    """

    site: Site
    vector: Float[Tensor, " d"]
    gap: float
    sigma: float
    norm: float
    unit: str
    checks: tuple[Check, ...]
    provenance: Provenance
    label: str = ""

    @property
    @override
    def axes(self) -> tuple[Axis, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One axis: the coordinates of the residual stream."""
        return (Axis("d", tuple(map(str, range(len(self.vector))))),)

    @property
    def unit_vector(self) -> Float[Tensor, " d"]:
        """The direction, at norm 1."""
        return self.vector / torch.linalg.vector_norm(self.vector)

    def at(
        self,
        strength: float,
        *,
        unit: Unit = "gap",
        positions: Where = None,
        rows: Iterable[int] | None = None,
        site: Site | str | None = None,
    ) -> Intervention:
        """Adding the direction: `strength` 1 in "gap" takes one class's mean to the other's.

        "sigma" counts spreads along the direction, "norm" mean norms of a row, "raw" the vector as
        it is. 0 changes nothing, bit for bit.

        Raises:
            OptionError: If the unit is unknown.
        """
        sizes = self.unit_sizes()
        if unit not in sizes:
            raise OptionError("unit", f"one of {', '.join(sizes)}", unit)
        return Intervention(
            self.site if site is None else site,
            operators.add(self.unit_vector),
            positions=positions,
            rows=rows,
            strength=strength,
            unit=unit,
            unit_size=sizes[unit],
            label=f"{self.label or 'direction'} {strength:+g} {unit} at {site or self.site}",
        )

    def erase(self, *, positions: Where = None, rows: Iterable[int] | None = None) -> Intervention:
        """Projecting the direction out of its site."""
        return Intervention(
            self.site,
            operators.project_out(self.vector),
            positions=positions,
            rows=rows,
            label=f"erase {self.label or 'direction'} at {self.site}",
        )

    def unit_sizes(self) -> Mapping[str, float]:
        """How long one of each unit is."""
        return {
            "raw": float(torch.linalg.vector_norm(self.vector)),
            "gap": self.gap,
            "sigma": self.sigma,
            "norm": self.norm,
        }

    @override
    def values(self) -> Mapping[str, Tensor]:
        return {"vector": self.vector}

    @override
    def table(self) -> Table:
        sizes = self.unit_sizes()
        names = [*sizes, *(check.name for check in self.checks)]
        numbers = [*sizes.values(), *(check.value for check in self.checks)]
        notes = ["length of one unit"] * len(sizes) + [check.note for check in self.checks]
        return Table({"quantity": names, "value": numbers, "note": notes})
