"""Many one-change runs, executed as few large batches.

Notable: cells are grouped by the first block they change, and each group starts from the base
run's residual stream at that block; only the answer's positions and columns are unembedded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.data import Batch, Prompt, batch_of
from workbench.core.errors import EmptySelectionError, NonFiniteError
from workbench.core.interventions import Intervention
from workbench.core.metrics import Metric, TokenMetric, read_by
from workbench.core.options import count, iterated
from workbench.core.plan import Interventions, Plan, as_plan
from workbench.core.program import Ledger, Program, compile_plan
from workbench.core.protocols import Model
from workbench.core.run import not_finite, unembed_at

Progress = Callable[[int, int], None]


@final
@dataclass(frozen=True, eq=False)
class SweepResult:
    """The metric of every cell and example, and of the base run; in the metric's unit."""

    base: Float[Tensor, " example"]
    values: Float[Tensor, "cell example"]
    unit: str
    forwards: int  # passes through (part of) the model, the base run included

    @property
    def effects(self) -> Float[Tensor, "cell example"]:
        """metric(changed) - metric(base)."""
        return self.values - self.base


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
    base = prompt if isinstance(prompt, Batch) else batch_of(model, prompt)
    reader, fixed = read_by(metric, model, len(base.tokens)), as_plan(plan)
    parts = iterated("cells", cells)
    plans = [as_plan([cell] if isinstance(cell, Intervention) else cell) for cell in parts]
    if not plans:
        raise EmptySelectionError("A sweep needs at least one cell.")
    groups = _groups(plans, model, len(base.tokens))
    start = _start(model, base, fixed, reader, tuple(groups))
    values = start.values.new_zeros(len(plans), len(base.tokens))
    size = max(1, count("max_tokens", max_tokens) // base.tokens.numel())
    done, forwards = 0, 1
    for layer, indices in groups.items():
        for chunk in (indices[i : i + size] for i in range(0, len(indices), size)):
            together = _together([plans[i] for i in chunk], fixed, len(base.tokens))
            values[chunk] = _batch(
                model, base, together, len(chunk), start.at[layer], layer, reader
            )
            done, forwards = done + len(chunk), forwards + 1
            if progress is not None:
                progress(done, len(plans))
    return SweepResult(start.values, values, reader.unit, forwards)


@final
@dataclass(frozen=True, eq=False)
class _Start:
    values: Float[Tensor, " example"]
    at: dict[int, Tensor]  # the residual stream before a block


def _groups(plans: list[Plan], model: Model, rows: int) -> dict[int, list[int]]:
    """Cells by the first block they change; a cell that changes the embedding starts at 0."""
    groups: dict[int, list[int]] = {}
    for index, plan in enumerate(plans):
        first = compile_plan(plan, model, rows).first_layer
        groups.setdefault(-1 if first is None else first, []).append(index)
    return dict(sorted(groups.items()))


def _start(
    model: Model, base: Batch, fixed: Plan, reader: TokenMetric, layers: tuple[int, ...]
) -> _Start:
    program = compile_plan(fixed, model, len(base.tokens))
    ledger = Ledger(fixed)
    tap = program.tap(base.place, ledger)
    at: dict[int, Tensor] = {}
    with torch.no_grad():
        resid = model.embed(base, tap)
        before = 0
        for layer in layers:
            resid = model.layers(resid, base, tap, first=before, last=max(layer, 0))
            before = max(layer, 0)
            at[layer] = resid
        resid = model.layers(resid, base, tap, first=before)
        values = _read(model, base, resid, reader, 1, program, ledger)
    program.finish(ledger, base.prompt.tolist(), "its scope selects no token")
    return _Start(values[0], at)


def _together(plans: list[Plan], fixed: Plan, rows: int) -> Plan:
    """The fixed plan on every cell's rows, then each cell's changes on its own.

    What of the fixed plan acts before the block a group starts from has acted in the base run.
    """
    cells = range(len(plans))
    kept = [
        one.on_rows(_rows(one, part, rows), optional=True)
        for one in fixed
        for part in ([cells] if _same_for_all_rows(one) else [range(c, c + 1) for c in cells])
    ]
    changed = [
        one.on_rows(_rows(one, range(cell, cell + 1), rows))
        for cell, plan in enumerate(plans)
        for one in plan
    ]
    return Plan((*kept, *changed))


def _same_for_all_rows(one: Intervention) -> bool:
    """Whether it is one vector for every row, so that many cells may share one operation."""
    return one.replayable and all(tensor.ndim == 1 for tensor in one.operator.tensors().values())


def _rows(one: Intervention, cells: range, rows: int) -> list[int]:
    """Where the rows of an intervention on the base run stand in a batch of cells."""
    own = range(rows) if one.rows is None else one.rows
    return [cell * rows + row for cell in cells for row in own]


def _batch(  # noqa: PLR0913 - one batch of a sweep is a run with everything given
    model: Model,
    base: Batch,
    plan: Plan,
    cells: int,
    resid: Tensor,
    layer: int,
    reader: TokenMetric,
) -> Float[Tensor, "cell example"]:
    batch = base.repeat(cells)
    program = compile_plan(plan, model, len(batch.tokens))
    ledger = Ledger(plan)
    tap = program.tap(batch.place, ledger)
    with torch.no_grad():
        stream = model.embed(batch, tap) if layer < 0 else resid.repeat(cells, 1, 1)
        stream = model.layers(stream, batch, tap, first=max(layer, 0))
        values = _read(model, batch, stream, reader, cells, program, ledger)
    program.finish(ledger, batch.prompt.tolist(), "its scope selects no token")
    return values


def _read(  # noqa: PLR0913 - see _batch
    model: Model,
    batch: Batch,
    resid: Tensor,
    reader: TokenMetric,
    cells: int,
    program: Program,
    ledger: Ledger,
) -> Float[Tensor, "cell example"]:
    tap = program.tap(batch.place, ledger)
    examples = torch.arange(len(batch.tokens) // cells).repeat(cells)
    logits = unembed_at(model, resid, tap, batch.last[:, None], reader.vocabulary)[:, 0]
    values = reader.read(logits, examples)
    if bad := not_finite(values):
        raise NonFiniteError(f"{reader.name} of {cells} cells", bad, values.numel())
    return values.reshape(cells, -1)
