"""Interventions: an operator, at sites, on some rows, positions, heads and neurons; frozen data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core import operators
from workbench.core.errors import OptionError
from workbench.core.gates import Gate
from workbench.core.operators import Operator
from workbench.core.options import expect, flag, indices, number, text
from workbench.core.place import Everywhere, Scope, Where, scope
from workbench.core.schedules import Schedule
from workbench.core.sites import Site, patterns_of

Indices = tuple[int, ...] | None


@final
@dataclass(frozen=True, init=False, eq=False, repr=False)
class Intervention:
    """One change of a run: `operator` at `sites`, where it acts, and how strongly.

    `strength` counts in `unit`s of `unit_size`; their product goes to the operator, so 0 changes
    nothing, bit for bit. Positions are absolute content positions: see `workbench.core.place`;
    so are `keys`, what a score or a pattern looks at, whose `positions` are those of the queries.
    A `schedule` multiplies what the operator changes, by the decode step of each token, and a
    `gate` by what an activation says there.
    """

    sites: tuple[str, ...]  # names and globs, as saved
    operator: Operator
    positions: Scope
    heads: Indices
    rows: Indices
    neurons: Indices
    keys: Indices
    strength: float
    unit: str
    unit_size: float
    schedule: Schedule | None
    gate: Gate | None
    optional: bool  # may go without acting
    label: str

    def __init__(  # noqa: PLR0913 - one keyword per place of the definition
        self,
        site: str | Site | Iterable[str | Site],
        operator: Operator | Callable[[Tensor], Tensor],
        *,
        positions: Where = None,
        heads: int | Iterable[int] | None = None,
        rows: int | Iterable[int] | None = None,
        neurons: int | Iterable[int] | None = None,
        keys: int | Iterable[int] | None = None,
        strength: float = 1.0,
        unit: str = "raw",
        unit_size: float = 1.0,
        schedule: Schedule | None = None,
        gate: Gate | None = None,
        optional: bool = False,
        label: str = "",
    ) -> None:
        """Checks everything that can be checked without a model.

        Raises:
            UnknownNameError: If a name is no site of any architecture.
            EmptySelectionError: If a list of sites, positions, heads or other indices is empty.
            OptionError: If an index is negative or named twice, or the strength is not finite.
        """
        if not isinstance(operator, Operator):
            operator = operators.function(operator)
        strength, unit_size = number("strength", strength), number("unit_size", unit_size)
        number("strength", strength * unit_size)
        fields = {
            "sites": patterns_of(site),
            "operator": operator,
            "positions": scope(positions),
            "heads": _indices("heads", heads),
            "rows": _indices("rows", rows),
            "neurons": _indices("neurons", neurons),
            "keys": _indices("keys", keys),
            "strength": strength,
            "unit": text("unit", unit),
            "unit_size": unit_size,
            "schedule": _schedule(schedule),
            "gate": _gate(gate),
            "optional": flag("optional", optional),
            "label": text("label", label),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the only way into a frozen dataclass

    @property
    def size(self) -> float:
        """The strength as the operator gets it."""
        return self.strength * self.unit_size

    @property
    def replayable(self) -> bool:
        """Whether it is data throughout: no bare function."""
        return not isinstance(self.operator, operators.Function)

    def on_rows(self, rows: Iterable[int], *, optional: bool | None = None) -> "Intervention":
        """The same change, on these rows of a batch only; `optional` as it is unless given."""
        return self._but(self.operator, rows, self.optional if optional is None else optional)

    def by(self, operator: Operator) -> "Intervention":
        """Another operator in the same places."""
        return self._but(operator, self.rows, self.optional)

    def _but(
        self,
        operator: Operator,
        rows: Iterable[int] | None,
        optional: bool,  # noqa: FBT001 - ours
    ) -> "Intervention":
        return Intervention(
            self.sites,
            operator,
            positions=self.positions,
            heads=self.heads,
            rows=rows,
            neurons=self.neurons,
            keys=self.keys,
            strength=self.strength,
            unit=self.unit,
            unit_size=self.unit_size,
            schedule=self.schedule,
            gate=self.gate,
            optional=optional,
            label=self.label,
        )

    @override
    def __repr__(self) -> str:
        plain = self.label or (self.strength == 1 and self.unit == "raw")
        return f"Intervention({self}{'' if plain else f', {self.strength:g} {self.unit}'})"

    @override
    def __str__(self) -> str:
        return self.label or f"{self.operator.name} at {', '.join(self.sites)}{_where(self)}"


def _schedule(schedule: object) -> Schedule | None:
    made = "a Schedule, as wb.schedules makes it"
    return None if schedule is None else expect("schedule", schedule, Schedule, made)


def _gate(gate: object) -> Gate | None:
    return None if gate is None else expect("gate", gate, Gate, "a Gate, as wb.gates makes it")


def _indices(name: str, values: int | Iterable[int] | None) -> Indices:
    if values is None:
        return None
    found = indices(name, values)
    if min(found) < 0:
        raise OptionError(name, "indices from 0 up", list(found))
    if len(set(found)) < len(found):
        raise OptionError(name, "indices that differ", list(found))
    return found


def _where(intervention: Intervention) -> str:
    named = {
        "head": intervention.heads,
        "row": intervention.rows,
        "neuron": intervention.neurons,
        "key": intervention.keys,
    }
    parts = [f"{name} {', '.join(map(str, at))}" for name, at in named.items() if at is not None]
    if not isinstance(intervention.positions, Everywhere):
        parts.append(_words(intervention.positions))
    if intervention.schedule is not None:
        parts.append(f"schedule {intervention.schedule.to_json()}")
    if intervention.gate is not None:
        parts.append(f"gate {intervention.gate.to_json()}")
    return f" ({'; '.join(parts)})" if parts else ""


def _words(scope: Scope) -> str:
    """A scope as a sentence has it: `positions 3, 5`, `generated`."""
    data = dict(scope.to_json())
    kind = str(data.pop("kind"))
    parts = (part if isinstance(part, list) else [part] for part in data.values())
    named = ", ".join(str(one) for part in parts for one in part)
    return f"{kind} {named}".rstrip()
