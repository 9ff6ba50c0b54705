"""What a sweep found: the metric of every cell and example, on named axes, with an interval."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.intervals import mean_interval
from workbench.core.provenance import Provenance
from workbench.core.result import Axis, Check, Result, Table, grid_table


@final
@dataclass(frozen=True, eq=False, repr=False)
class SweepResult(Result):
    """The metric of every cell and example, and of the base run; in the metric's unit.

    `axes` are those of the cells: of a `Grid` its own, of a list of cells one axis, `cell`. A cell
    that was not run, since the sweep was stopped, is NaN in `changed`, and false in `done`.
    """

    changed: Float[Tensor, "*cells example"]  # metric(changed)
    base: Float[Tensor, " example"]  # metric(base)
    source: Float[Tensor, " example"] | None  # metric(source), where activations were put in
    done: Bool[Tensor, "*cells"]
    axes: tuple[Axis, ...]
    unit: str
    metric: str
    checks: tuple[Check, ...]
    provenance: Provenance
    waves: int  # passes through (part of) the model, beside the base run
    tokens: int  # token positions of all cells together that went through at least one block

    @property
    def effects(self) -> Float[Tensor, "*cells example"]:
        """metric(changed) - metric(base) of each example."""
        return self.changed - self.base

    @property
    def effect(self) -> Float[Tensor, "*cells"]:
        """metric(changed) - metric(base), the mean over examples; what supports is negative."""
        return self.effects.mean(-1)

    @property
    def complete(self) -> bool:
        """Whether every cell was run."""
        return bool(self.done.all())

    def interval(
        self, *, level: float = 0.95, n_draws: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "*cells"], Float[Tensor, "*cells"]]:
        """Low and high end of `effect`, by the bootstrap over examples (BCa, Efron 1987).

        Raises:
            EmptySelectionError: If there is one example only, whose spread nobody knows.
            OptionError: If cells are missing, or an option is out of range.
        """
        if not self.complete:
            raise OptionError("interval", "read of a whole sweep", f"{self.n_done} cells")
        rows = self.effects.reshape(-1, len(self.base)).T
        low, high = mean_interval(rows, level=level, n_draws=n_draws, seed=seed)
        return low.reshape(self.done.shape), high.reshape(self.done.shape)

    @property
    def n_done(self) -> int:
        """How many cells were run."""
        return int(self.done.sum())

    def top(self, count: int = 10) -> Table:
        """The largest effects by size, with their places, the largest first."""
        table = grid_table(self.axes, {"effect": self.effect})
        order = self.effect.flatten().nan_to_num(0).abs().argsort(descending=True, stable=True)
        at = order[:count].tolist()
        return Table({name: [column[i] for i in at] for name, column in table.columns.items()})

    @override
    def values(self) -> Mapping[str, Tensor]:
        found = {"effect": self.effect, "changed": self.changed, "base": self.base}
        given = {} if self.source is None else {"source": self.source}
        return {**found, **given, "done": self.done}

    @override
    def details(self) -> Mapping[str, Any]:
        return {"metric": self.metric, "waves": self.waves, "tokens": self.tokens}

    @override
    def table(self) -> Table:
        columns = {"effect": self.effect}
        if self.complete and len(self.base) > 1:
            columns["low"], columns["high"] = self.interval()
        return grid_table(self.axes, columns)
