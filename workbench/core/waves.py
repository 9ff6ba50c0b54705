"""Which cells of a sweep run together: each has a first block and a first column that it changes.

Notable: what decides is the cost of a pass. Reading the weights of a block once costs about as much
as multiplying by them for `READING` tokens, so cells with different suffixes share a wave only as
long as the tokens this wastes are fewer than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from workbench.core.data import Batch
from workbench.core.interventions import Intervention
from workbench.core.metrics import TokenMetric
from workbench.core.plan import Plan
from workbench.core.program import compile_plan
from workbench.core.protocols import Model, keeps
from workbench.core.sides import Side, on_side
from workbench.core.standing import Scope

READING = 64  # tokens; measured on two cores in float32, where 32 to 128 differ little


@final
@dataclass(frozen=True, eq=False)
class Cell:
    """One change, and where its run begins to differ from the base run."""

    index: int
    plan: Plan
    layer: int  # the first block it changes; -1 for the embedding, n_layers for what comes after
    column: int | None  # the first column it changes; None where it may change nothing and does


def cell_of(index: int, plan: Plan, model: Model, batch: Batch, fixed: Plan) -> Cell:
    """Where the run of a cell begins, under a `fixed` plan.

    Columns are those of a stream: what changes the source of an encoder–decoder model changes the
    memory, and so all of the target; what changes the target leaves all before it.

    At the first column where a bare function may look at all of them, and where keys are named
    among pads: which column has which key is known in a whole pass only. Before everything where
    there is a gate, which may read anywhere before it acts.

    Raises:
        UnknownNameError: If a site is not one of the model's.
        OptionError: If a row is outside the batch.
    """
    program = compile_plan(plan, model, len(batch.tokens))
    columns = [
        _first_column(one, scope, on_side(batch, side))
        for index, (one, scope) in enumerate(zip(plan, program.scopes, strict=True))
        if one.size
        for side in program.sides_of(index)
    ]
    found = [column for column in columns if column is not None]
    if not found:
        optional = all(one.optional or one.size == 0 for one in plan)
        return Cell(index, plan, -1, None if optional else 0)
    both = plan + fixed
    if any(one.gate is not None for one in both):
        return Cell(index, plan, -1, 0)
    keyed = batch.real is not None and any(one.keys is not None for one in both)
    kept = model.causal and keeps(model)
    alike = kept and both.replayable and not keyed and Side.SOURCE not in program.sides
    column = batch.ahead + min(found) if alike else 0
    return Cell(index, plan, program.first_block(model), column)


@final
@dataclass(frozen=True, eq=False)
class Budget:
    """How large a batch of cells may be."""

    max_tokens: int
    max_bytes: int
    model: Model
    metric: TokenMetric

    def holds(self, rows: int, width: int, columns: int) -> bool:
        """Whether a batch of `rows` rows of `columns` of their `width` columns is small enough."""
        return rows * columns <= self.max_tokens and self._bytes(rows, width, columns) <= (
            self.max_bytes
        )

    def _bytes(self, rows: int, width: int, columns: int) -> int:
        """What the widest moment of a pass takes: a block's inner values, or the logits."""
        sizes, read = self.model.sizes, self.metric.vocabulary
        token = 4 * sizes.d_model + 3 * sizes.d_mlp + 3 * sizes.n_heads * sizes.d_head
        row = 4 * width * sizes.n_key_value_heads * sizes.d_head + sizes.n_heads * columns * width
        words = 3 * (sizes.d_vocab if read is None else len(read))
        held = columns * sizes.d_model
        return rows * (held + max(columns * token + row, words)) * self.model.dtype.itemsize


def waves(cells: Sequence[Cell], batch: Batch, budget: Budget) -> list[list[Cell]]:
    """The cells in batches within the budget (but one cell at the least)."""
    rows, width = len(batch.tokens), batch.width
    made: list[list[Cell]] = []
    for cell in sorted(cells, key=lambda one: (-(one.column or 0), one.layer)):
        column, wave = cell.column or 0, made[-1] if made else []
        wasted = (width if not wave else (wave[-1].column or 0) - column) * rows * len(wave)
        full = not budget.holds((len(wave) + 1) * rows, width, width - column)
        if not wave or full or wasted > READING:
            made.append([])
        made[-1].append(cell)
    return [sorted(wave, key=lambda one: one.layer) for wave in made]


def _first_column(one: Intervention, scope: Scope, batch: Batch) -> int | None:
    """The first column at which an intervention acts in any of its rows."""
    place = batch.place if one.rows is None else batch.place.of(one.rows)
    chosen = scope.select(place)
    if isinstance(chosen, Tensor):
        mask = chosen if place.real is None else chosen & place.real
        acted = mask.any(0).nonzero()
        return int(acted[0]) if len(acted) else None
    return 0 if chosen else None
