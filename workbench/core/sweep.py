"""Many one-change runs, executed as few large batches.

Notable: nothing is computed twice. A cell starts from the base run's stream at the first block it
changes (*prefix*), and runs only the columns from its first change on, against the base run's keys
and values (*suffix*; a causal model's earlier columns cannot move). Cells with much the same suffix
travel as one *wave*, which each joins at its own block, so that weights are read once a wave; only
the answer's position and vocabulary columns are unembedded.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.cache import KeptKeys, SuffixCache
from workbench.core.data import Batch, Prompt, batch_of
from workbench.core.errors import EmptySelectionError, NonFiniteError, OptionError
from workbench.core.grid import Grid, parting, spread
from workbench.core.guards import check_need, sweep_need
from workbench.core.interventions import Intervention
from workbench.core.ledger import Ledger
from workbench.core.metrics import AnyMetric, TokenMetric, read_by
from workbench.core.modes import forward_only, outside_inference
from workbench.core.options import count, iterated
from workbench.core.plan import Interventions, Plan, as_plan
from workbench.core.program import compile_plan
from workbench.core.protocols import Model
from workbench.core.provenance import Provenance, digest, provenance
from workbench.core.request import as_batch
from workbench.core.result import Axis, Check
from workbench.core.run import Check as Cancel
from workbench.core.run import Checked, not_finite, run, unembed_at
from workbench.core.sweep_result import SweepResult
from workbench.core.tap import UNTAPPED, Tap, chain
from workbench.core.waves import Budget, Cell, cell_of, waves

Progress = Callable[[int, int], None]
ENDED = "its scope selects no token"


@outside_inference
def sweep(  # noqa: PLR0913 - what is swept over, what is read, and how it may be watched
    model: Model,
    prompt: Prompt | Batch,
    cells: Grid | Iterable[Intervention | Interventions],
    metric: AnyMetric,
    *,
    source: Prompt | Batch | None = None,
    target: Prompt | None = None,
    plan: Interventions = (),
    max_tokens: int = 1024,
    max_bytes: int = 2**30,
    verify: int = 1,
    progress: Progress | None = None,
    check: Cancel | None = None,
    stop: Callable[[], bool] | None = None,
) -> SweepResult:
    """The metric under each cell's changes, one cell at a time, batched many to a forward.

    A metric is one of `wb.metrics`, or a function of your own from answer logits (row d_vocab) to a
    number for each row.

    `cells` is a `Grid`, or a list whose entries are an intervention, or several that belong
    together. A grid without an operator puts in the activations that `source` has in the same
    places (activation patching). `plan` holds in every run, before the cell. `target` is what the
    decoder of a model with an encoder was given, in the base run and in that of the source.

    Costs a run of the base and less than one of each cell: only what the cell changes is run. A
    batch has at most `max_tokens` tokens and takes about `max_bytes`. `verify` of the cells, those
    of the largest effects, are run once more by themselves, and the difference is a check.
    `progress(done, total)` is called after each batch, `check` at every site; either may raise to
    cancel. `stop` is asked before each batch: True ends the sweep with the cells done so far.

    Raises:
        EmptySelectionError: If there are no cells.
        NeverActedError: If a cell of a list changes nothing.
        AlignmentError: If `source` does not match the base token by token.
        ShapeError: If the prompts are not the metric's examples.
        NonFiniteError: If the metric of a cell is not finite.
        MemoryLimitError: If the base run and a batch of cells would not fit; says what would.
    """
    batch = as_batch(model, prompt, "right", None, target)
    reader, fixed = read_by(metric, model, len(batch.tokens)), as_plan(plan)
    made = _cells(cells, model, batch, source, fixed, reader)
    found = [cell_of(index, one, model, batch, fixed) for index, one in enumerate(made.plans)]
    size = Budget(count("max_tokens", max_tokens), count("max_bytes", max_bytes), model, reader)
    groups = waves([cell for cell in found if cell.column is not None], batch, size)
    check_need(sweep_need(model, batch, found, groups), model)
    base = _base(model, batch, fixed, reader, found)
    values = base.values.repeat(len(found), 1)
    done = torch.tensor([cell.column is None for cell in found])
    tokens, n_waves = 0, 0
    for wave in groups:
        if stop is not None and stop():
            break
        at = [cell.index for cell in wave]
        values[at] = _ride(model, base, wave, fixed, reader, check)
        done[at], n_waves, tokens = True, n_waves + 1, tokens + _tokens(wave, batch)
        if progress is not None:
            progress(int(done.sum()), len(found))
    values[~done] = torch.nan
    checks = (*made.checks(base.values), _count(done))
    if again := _largest(values, base.values, count("verify", verify, least=0)):
        alone = [_alone(model, batch, fixed, made.plans[i], reader, check) for i in again]
        checks = (*checks, _residual(torch.stack(alone) - values[again], reader.unit))
    shape = tuple(len(axis.labels) for axis in made.axes)
    return SweepResult(
        changed=values.reshape(*shape, -1),
        base=base.values,
        source=made.source,
        done=done.reshape(shape),
        axes=made.axes,
        unit=reader.unit,
        metric=reader.name,
        checks=checks,
        provenance=made.provenance(model, batch, fixed),
        waves=n_waves,
        tokens=tokens,
    )


@final
@dataclass(frozen=True, eq=False)
class _Cells:
    """The cells of one sweep, made ready, and what is known of them before a run."""

    plans: tuple[Plan, ...]
    axes: tuple[Axis, ...]
    unit: str
    source: Float[Tensor, " example"] | None  # metric(source)
    parted: int | None

    def checks(self, base: Float[Tensor, " example"]) -> tuple[Check, ...]:
        """What can be told without the cells."""
        if self.source is None or self.parted is None:
            return ()
        total = float((self.source - base).mean())
        return (
            Check("total effect", total, self.unit, "metric(source) - metric(base)"),
            Check("parted", float(self.parted), "position", "the prompts agree before: effect 0"),
        )

    def provenance(self, model: Model, batch: Batch, fixed: Plan) -> Provenance:
        """What was swept, on what."""
        labels = [list(axis.labels) for axis in self.axes]
        named = {axis.name: len(axis.labels) for axis in self.axes}
        parameters = {"axes": named, "cells": digest(labels), "plan": [str(one) for one in fixed]}
        data = batch.tokens.tolist()
        return provenance(model, method="sweep", data=data, parameters=parameters)


def _cells(
    cells: Grid | Iterable[Intervention | Interventions],
    model: Model,
    batch: Batch,
    source: Prompt | Batch | None,
    fixed: Plan,
    reader: TokenMetric,
) -> _Cells:
    """Reads what a caller may pass as cells.

    Raises:
        EmptySelectionError: If there are none.
        OptionError: If a source is given to cells that do not ask for one.
    """
    if isinstance(cells, Grid):
        return _of_grid(cells, model, batch, source, fixed, reader)
    if source is not None:
        raise OptionError("source", "left out: only a Grid without an operator reads it", "one")
    parts = iterated("cells", cells)
    plans = tuple(as_plan([cell] if isinstance(cell, Intervention) else cell) for cell in parts)
    if not plans:
        raise EmptySelectionError("A sweep needs at least one cell.")
    axis = Axis("cell", tuple("; ".join(map(str, one)) or "no change" for one in plans))
    return _Cells(plans, (axis,), reader.unit, None, None)


def _of_grid(
    grid: Grid,
    model: Model,
    batch: Batch,
    source: Prompt | Batch | None,
    fixed: Plan,
    reader: TokenMetric,
) -> _Cells:
    given, value, parted = None, None, None
    if source is not None and grid.operator is not None:
        raise OptionError("source", "left out: the grid has an operator of its own", "one")
    if source is not None:
        donor = source if isinstance(source, Batch) else _donor(model, source, batch)
        parted = parting(batch, donor, model) if fixed.replayable else 0
        sites, columns = grid.chosen(model), reader.vocabulary
        given = run(model, donor, plan=fixed, record=sites, positions="answer", vocabulary=columns)
        value = reader(given)
    made = spread(grid, model, batch, {} if given is None else given.activations, parted)
    plans = tuple(Plan((cell,)) for cell in made.cells)
    return _Cells(plans, made.axes, reader.unit, value, made.parted)


def _donor(model: Model, source: Prompt, base: Batch) -> Batch:
    """The prompts that activations are taken from, with the target of the base run.

    Raises:
        OptionError: If the model has a query stream: which targets is not said.
    """
    if model.sizes.predicts:
        raise OptionError("source", "a Batch, with the targets of the base run", "prompts")
    if base.source is None:
        return batch_of(model, source)
    rows = [
        row.tolist() if base.real is None else row[base.real[place]].tolist()
        for place, row in enumerate(base.tokens)
    ]
    return batch_of(model, source, target=rows)


def _count(done: Tensor) -> Check:
    note = f"of {done.numel()}; each one exact, a run of its own and no estimate"
    return Check("cells", float(done.sum()), "places", note)


def _largest(values: Tensor, base: Tensor, n: int) -> list[int]:
    """The cells whose effect is the largest, of those that were run and have any."""
    sizes = (values - base).abs().mean(1).nan_to_num(0)
    order = sizes.argsort(descending=True, stable=True)[:n]
    return [int(index) for index in order if sizes[index] > 0]


def _residual(difference: Tensor, unit: str) -> Check:
    note = f"the largest of {len(difference)} cells run by themselves; rounding only"
    return Check("residual", float(difference.abs().max()), unit, note)


def _alone(
    model: Model, batch: Batch, fixed: Plan, cell: Plan, reader: TokenMetric, check: Cancel | None
) -> Float[Tensor, " example"]:
    """One cell as an ordinary run."""
    columns = reader.vocabulary
    return reader(
        run(model, batch, plan=fixed + cell, positions="answer", vocabulary=columns, check=check)
    )


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
    tap = program.tap(batch, ledger)
    at: dict[int, Tensor] = {}
    with forward_only():
        resid, before = model.embed(batch, tap), 0
        for layer in sorted({max(cell.layer, 0) for cell in cells}):
            resid = model.layers(resid, batch, tap, first=before, last=layer, cache=kept)
            at[layer], before = resid, layer
        resid = model.layers(resid, batch, tap, first=before, cache=kept)
        values = _read(model, batch, resid, tap, reader, 1)
    program.finish(ledger, batch, ENDED)
    return _Base(batch, values[0], at, kept)


def _ride(
    model: Model,
    base: _Base,
    wave: Sequence[Cell],
    fixed: Plan,
    reader: TokenMetric,
    check: Cancel | None,
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
    checks = () if check is None else (Checked(check),)
    stream, joined, batch, tap = part.tokens.new_empty(0), 0, part, UNTAPPED
    with forward_only():
        for layer, last in zip(stops, [*stops[1:], None], strict=True):
            new = sum(cell.layer == layer for cell in wave)
            joined += new
            batch = part.repeat(joined)
            held = repeated(fixed, range(joined), rows)
            given = compile_plan(held, model, len(batch.tokens)).tap(batch, Ledger(held))
            tap = chain(*checks, given, program.tap(batch, ledger))
            if layer < 0:
                stream = model.embed(batch, tap)
            else:
                joining = base.at[layer][:, -part.width :].repeat(new, 1, 1)
                stream = torch.cat([stream, joining]) if joined > new else joining
            done = max(column - base.batch.ahead, 0)
            cache = SuffixCache(base.kept, base.batch.real, done, joined)
            first = max(layer, 0)
            stream = model.layers(stream, batch, tap, first=first, last=last, cache=cache)
        values = _read(model, batch, stream, tap, reader, joined)
    program.finish(ledger, batch, ENDED)
    # A row that is asked about before it cannot be moved.
    reached = base.batch.ahead + base.batch.answer >= column
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
    return len(wave) * len(batch.tokens) * (batch.width - column)


def _read(
    model: Model, batch: Batch, resid: Tensor, tap: Tap, reader: TokenMetric, cells: int
) -> Float[Tensor, "cell example"]:
    examples = torch.arange(len(batch.tokens) // cells, device=resid.device).repeat(cells)
    logits = unembed_at(model, resid, tap, batch.answer[:, None], reader.vocabulary)[:, 0]
    values = reader.read(logits, examples)
    if bad := not_finite(values):
        raise NonFiniteError(f"{reader.name} of {cells} cells", bad, values.numel())
    return values.reshape(cells, -1)
