"""Many one-change runs, executed as few large batches.

Notable: nothing is computed twice. A cell starts from the base run's stream at the first block it
changes (*prefix*), and runs only the columns from its first change on, against the base run's keys
and values (*suffix*; a causal model's earlier columns cannot move). Cells with much the same suffix
travel as one *wave*, which each joins at its own block, so that weights are read once a wave; only
the answer's position and vocabulary columns are unembedded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.cache import KeptKeys, SuffixCache
from workbench.core.data import Batch, Prompt, batch_of
from workbench.core.errors import EmptySelectionError, NonFiniteError
from workbench.core.interventions import Intervention
from workbench.core.metrics import Metric, TokenMetric, read_by
from workbench.core.modes import forward_only, outside_inference
from workbench.core.options import count, iterated
from workbench.core.plan import Interventions, Plan, as_plan
from workbench.core.program import Ledger, compile_plan
from workbench.core.protocols import Model
from workbench.core.run import not_finite, unembed_at
from workbench.core.tap import UNTAPPED, Tap, chain
from workbench.core.waves import Cell, cell_of, waves

Progress = Callable[[int, int], None]
ENDED = "its scope selects no token"


@final
@dataclass(frozen=True, eq=False)
class SweepResult:
    """The metric of every cell and example, and of the base run; in the metric's unit."""

    base: Float[Tensor, " example"]
    values: Float[Tensor, "cell example"]
    unit: str
    waves: int  # passes through (part of) the model, beside the base run
    tokens: int  # token positions of all cells together that went through at least one block

    @property
    def effects(self) -> Float[Tensor, "cell example"]:
        """metric(changed) - metric(base)."""
        return self.values - self.base


@outside_inference
def sweep(  # noqa: PLR0913 - what is swept over, what is read, and how large a batch may be
    model: Model,
    prompt: Prompt | Batch,
    cells: Sequence[Intervention | Interventions],
    metric: Metric | TokenMetric,
    *,
    plan: Interventions = (),
    max_tokens: int = 1024,
    progress: Progress | None = None,
) -> SweepResult:
    """The metric under each cell's changes, one cell at a time, batched many to a forward.

    A cell is an intervention, or several that belong together; `plan` holds in every cell, before
    it. `max_tokens` bounds the tokens of one batch.
    `progress(done, total)` is called after each batch and may raise to cancel.

    Raises:
        EmptySelectionError: If there are no cells.
        NeverActedError: If a cell changes nothing.
        ShapeError: If the prompts are not the metric's examples.
        NonFiniteError: If the metric of a cell is not finite.
    """
    batch = prompt if isinstance(prompt, Batch) else batch_of(model, prompt)
    reader, fixed = read_by(metric, model, len(batch.tokens)), as_plan(plan)
    parts = iterated("cells", cells)
    plans = [as_plan([cell] if isinstance(cell, Intervention) else cell) for cell in parts]
    if not plans:
        raise EmptySelectionError("A sweep needs at least one cell.")
    found = [
        cell_of(index, one, model, batch, whole=not fixed.replayable)
        for index, one in enumerate(plans)
    ]
    base = _base(model, batch, fixed, reader, found)
    values = base.values.repeat(len(plans), 1)
    moving = [cell for cell in found if cell.column is not None]
    done = len(found) - len(moving)
    tokens = 0
    together = waves(moving, batch, count("max_tokens", max_tokens))
    for wave in together:
        at = [cell.index for cell in wave]
        values[at] = _ride(model, base, wave, fixed, reader)
        done, tokens = done + len(wave), tokens + _tokens(wave, batch)
        if progress is not None:
            progress(done, len(plans))
    return SweepResult(base.values, values, reader.unit, len(together), tokens)


@final
@dataclass(frozen=True, eq=False)
class _Base:
    """What the unchanged run leaves for the cells: where they join, and what they look back at."""

    batch: Batch
    values: Float[Tensor, " example"]
    at: dict[int, Tensor]  # the residual stream before a block
    kept: KeptKeys


def _base(
    model: Model, batch: Batch, fixed: Plan, reader: TokenMetric, cells: Sequence[Cell]
) -> _Base:
    program = compile_plan(fixed, model, len(batch.tokens))
    ledger, kept = Ledger(fixed), KeptKeys(padded=batch.real is not None)
    tap = program.tap(batch.place, ledger)
    at: dict[int, Tensor] = {}
    with forward_only():
        resid, before = model.embed(batch, tap), 0
        for layer in sorted({max(cell.layer, 0) for cell in cells}):
            resid = model.layers(resid, batch, tap, first=before, last=layer, cache=kept)
            at[layer], before = resid, layer
        resid = model.layers(resid, batch, tap, first=before, cache=kept)
        values = _read(model, batch, resid, tap, reader, 1)
    program.finish(ledger, batch.prompt.tolist(), ENDED)
    return _Base(batch, values[0], at, kept)


def _ride(
    model: Model, base: _Base, wave: Sequence[Cell], fixed: Plan, reader: TokenMetric
) -> Float[Tensor, "cell example"]:
    """One pass through the blocks, which every cell joins where it first changes something."""
    rows, column = len(base.batch.tokens), min(cell.column or 0 for cell in wave)
    part = base.batch.since(column)
    changes = [
        one.on_rows(_rows(one, range(place, place + 1), rows))
        for place, cell in enumerate(wave)
        for one in cell.plan
    ]
    program = compile_plan(Plan(tuple(changes)), model, rows * len(wave))
    ledger = Ledger(program.plan)
    stops = sorted({cell.layer for cell in wave})
    stream, joined, batch, tap = part.tokens.new_empty(0), 0, part, UNTAPPED
    with forward_only():
        for layer, last in zip(stops, [*stops[1:], None], strict=True):
            new = sum(cell.layer == layer for cell in wave)
            joined += new
            batch = part.repeat(joined)
            held = repeated(fixed, range(joined), rows)
            given = compile_plan(held, model, len(batch.tokens)).tap(batch.place, Ledger(held))
            tap = chain(given, program.tap(batch.place, ledger))
            if layer < 0:
                stream = model.embed(batch, tap)
            else:
                joining = base.at[layer][:, column:].repeat(new, 1, 1)
                stream = torch.cat([stream, joining]) if joined > new else joining
            cache = SuffixCache(base.kept, base.batch.real, column, joined)
            first = max(layer, 0)
            stream = model.layers(stream, batch, tap, first=first, last=last, cache=cache)
        values = _read(model, batch, stream, tap, reader, joined)
    program.finish(ledger, batch.prompt.tolist(), ENDED)
    reached = base.batch.last >= column  # a row that ends before it cannot be moved
    return torch.where(reached, values, base.values)


def repeated(fixed: Plan, cells: range, rows: int) -> Plan:
    """The plan of a batch of so many rows, on each of several such batches that run as one.

    Nothing of it need act: what acts before the block where a cell joins has acted in the base run.
    """
    return Plan(
        tuple(
            one.on_rows(_rows(one, part, rows), optional=True)
            for one in fixed
            for part in ([cells] if _same_for_all_rows(one) else [range(c, c + 1) for c in cells])
        )
    )


def _same_for_all_rows(one: Intervention) -> bool:
    """Whether it is one vector for every row, so that many cells may share one operation."""
    return one.replayable and all(tensor.ndim == 1 for tensor in one.operator.tensors().values())


def _rows(one: Intervention, cells: range, rows: int) -> list[int]:
    """Where the rows of an intervention on the base run stand in a batch of cells."""
    own = range(rows) if one.rows is None else one.rows
    return [cell * rows + row for cell in cells for row in own]


def _tokens(wave: Sequence[Cell], batch: Batch) -> int:
    column = min(cell.column or 0 for cell in wave)
    return len(wave) * len(batch.tokens) * (batch.tokens.shape[1] - column)


def _read(
    model: Model, batch: Batch, resid: Tensor, tap: Tap, reader: TokenMetric, cells: int
) -> Float[Tensor, "cell example"]:
    examples = torch.arange(len(batch.tokens) // cells, device=resid.device).repeat(cells)
    logits = unembed_at(model, resid, tap, batch.last[:, None], reader.vocabulary)[:, 0]
    values = reader.read(logits, examples)
    if bad := not_finite(values):
        raise NonFiniteError(f"{reader.name} of {cells} cells", bad, values.numel())
    return values.reshape(cells, -1)
