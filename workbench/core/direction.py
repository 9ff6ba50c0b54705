"""Directions: a vector at a site, with what it takes to use it and to judge it.

Probes and steering methods make them; `direction.at(strength, unit)` is an intervention.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.core import operators
from workbench.core.errors import FormatError, OptionError, WorkbenchError
from workbench.core.gates import Gate
from workbench.core.interventions import Intervention
from workbench.core.options import number, text
from workbench.core.place import Where
from workbench.core.provenance import Provenance
from workbench.core.result import Axis, Check, Result, Table, load_result
from workbench.core.schedules import Schedule
from workbench.core.sites import Site

Unit = Literal["raw", "gap", "sigma", "norm"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Direction(Result):
    """A vector at a site in raw activation space, with the sizes its strengths can be counted in.

    `gap` is the distance of the class means along the direction, `sigma` the standard deviation
    along it within a class, `norm` the mean norm of a row; each in the activation's own unit.
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

    def __post_init__(self) -> None:
        """Refuses what no direction can be.

        Raises:
            OptionError: If the vector is not one axis of finite numbers.
        """
        vector = self.vector
        if vector.ndim != 1 or not vector.is_floating_point() or not bool(vector.isfinite().all()):
            raise OptionError("vector", "one axis of finite numbers", tuple(vector.shape))

    @property
    @override
    def axes(self) -> tuple[Axis, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One axis: the coordinates of the residual stream."""
        return (Axis("d", tuple(map(str, range(len(self.vector))))),)

    @property
    def unit_vector(self) -> Float[Tensor, " d"]:
        """The direction, at norm 1.

        Raises:
            OptionError: If the vector is zero: what it was made from tells nothing.
        """
        length = torch.linalg.vector_norm(self.vector)
        if not bool(length):
            told = f"a vector that points somewhere ({self.site} tells the classes nothing)"
            raise OptionError("vector", told, "zero")
        return self.vector / length

    def at(  # noqa: PLR0913 - how much, where and when
        self,
        strength: float,
        *,
        unit: Unit = "gap",
        positions: Where = None,
        rows: Iterable[int] | None = None,
        site: Site | str | None = None,
        schedule: Schedule | None = None,
        gate: Gate | None = None,
        optional: bool = False,
    ) -> Intervention:
        """Adding the direction: `strength` 1 in "gap" takes one class's mean to the other's.

        "sigma" counts spreads within a class along the direction, "norm" mean norms of a row, "raw"
        the vector as it is. 0 changes nothing, bit for bit. `schedule` and `gate` are those of an
        Intervention. `optional`: may go without acting.

        Raises:
            OptionError: If the unit is unknown.
        """
        where = self.site if site is None else site
        sizes, strength = self.unit_sizes(), number("strength", strength)
        if text("unit", unit) not in sizes:
            raise OptionError("unit", f"one of {', '.join(sizes)}", unit)
        return Intervention(
            where,
            operators.add(self.unit_vector),
            positions=positions,
            rows=rows,
            strength=strength,
            unit=unit,
            unit_size=sizes[unit],
            schedule=schedule,
            gate=gate,
            optional=optional,
            label=f"{self.label or 'direction'} {strength:+g} {unit} at {where}",
        )

    def erase(
        self,
        *,
        positions: Where = None,
        rows: Iterable[int] | None = None,
        schedule: Schedule | None = None,
        gate: Gate | None = None,
        optional: bool = False,
    ) -> Intervention:
        """Projecting the direction out of its site; `optional`: may go without acting."""
        return Intervention(
            self.site,
            operators.project_out(self.unit_vector),
            positions=positions,
            rows=rows,
            schedule=schedule,
            gate=gate,
            optional=optional,
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
    def details(self) -> Mapping[str, Any]:
        sizes = {"gap": self.gap, "sigma": self.sigma, "norm": self.norm}
        return {"site": str(self.site), "label": self.label, **sizes}

    @classmethod
    def load(cls, file: str | Path) -> "Direction":
        """Reads what `save` wrote, to the bit.

        Raises:
            FormatError: If the file is missing, truncated, or holds no direction.
        """
        saved = load_result(file)
        try:
            extra = saved.details()
            return cls(
                site=Site.parse(extra["site"]),
                vector=saved.values()["vector"],
                gap=number("gap", extra["gap"]),
                sigma=number("sigma", extra["sigma"]),
                norm=number("norm", extra["norm"]),
                unit=saved.unit,
                checks=saved.checks,
                provenance=saved.provenance,
                label=text("label", extra["label"]),
            )
        except (WorkbenchError, LookupError, TypeError) as error:
            told = f"{file} holds no direction but a {saved.kind}: {error}"
            raise FormatError(told) from None

    @override
    def table(self) -> Table:
        sizes = self.unit_sizes()
        names = [*sizes, *(check.name for check in self.checks)]
        numbers = [*sizes.values(), *(check.value for check in self.checks)]
        notes = ["length of one unit"] * len(sizes) + [check.note for check in self.checks]
        return Table({"quantity": names, "value": numbers, "note": notes})
