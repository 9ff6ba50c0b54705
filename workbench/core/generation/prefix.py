"""What the prompts of a batch begin with in common, and which rows a plan treats alike there.

Notable: whether a beginning is shared is decided by the prompts alone, and each kind of row runs it
as a batch of one; so a row keeps its bytes whatever plans its neighbours have.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workbench.core.data import Batch
from workbench.core.interventions import Intervention
from workbench.core.operators import Function
from workbench.core.plan import Plan
from workbench.core.program import Program
from workbench.core.standing import Selection

SHORTEST = 16  # tokens: below, one pass more costs what it saves


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Rows that are alike in the shared beginning, with the plan of one of them."""

    rows: tuple[int, ...]
    plan: Plan
    indices: tuple[int, ...]  # where its interventions stand in the whole plan


def shared(batch: Batch, program: Program, *, least: int = SHORTEST) -> int:
    """How many first tokens all rows share; 0 where that is too few, or the plan forbids it.

    At least one token of every row is left, to choose the next from. A bare function may look at
    the whole batch, and an operand with a row for each has to meet all of them.
    """
    if len(batch.tokens) < 2 or any(_whole(one) for one in program.plan):
        return 0
    place = batch.place
    lengths = batch.prompt.tolist()
    rows = [row[:n] for row, n in zip(place.content.tolist(), lengths, strict=True)]
    n = min(lengths) - 1
    same = next((i for i in range(n) if len({row[i] for row in rows}) > 1), n)
    return same if same >= least else 0


def groups(batch: Batch, program: Program) -> tuple[Group, ...]:
    """The rows of a batch over a shared beginning, those together that the plan treats alike."""
    chosen = [scope.select(batch.place) for scope in program.scopes]
    steps = [None if one.schedule is None else one.schedule.at(batch.place) for one in program.plan]
    alike: dict[Hashable, list[int]] = {}
    for row in range(len(batch.tokens)):
        key = tuple(
            (_same(one), _bytes(chosen[i], row), None if (s := steps[i]) is None else _row(s, row))
            for i, one in enumerate(program.plan)
            if one.size != 0 and (one.rows is None or row in one.rows)
        )
        alike.setdefault(tuple(part for part in key if part[1] is not False), []).append(row)
    return tuple(_group(rows, program) for rows in alike.values())


def one_row(batch: Batch, row: int, columns: int) -> Batch:
    """The first tokens of a row, as a batch of its own."""
    tokens = batch.place.content[row : row + 1, :columns]
    return Batch(tokens, None, batch.start[row : row + 1], batch.prompt[row : row + 1])


def rest(batch: Batch, columns: int) -> Batch:
    """The prompts after their first tokens, padded on the left."""
    content, lengths = batch.place.content, batch.prompt - columns
    width = int(lengths.max())
    at = torch.arange(width, device=content.device) - (width - lengths)[:, None]  # batch pos
    tokens = content.gather(1, (at + columns).clamp(min=columns))
    real = None if bool((at >= 0).all()) else at >= 0
    return Batch(tokens, real, batch.start + columns, batch.prompt, content)


def _whole(one: Intervention) -> bool:
    if isinstance(one.operator, Function):
        return True
    return any(value.ndim > 2 and len(value) > 1 for value in one.operator.tensors().values())


def _same(one: Intervention) -> Hashable:
    return id(one.operator), one.sites, one.size, one.heads, one.neurons, one.keys


def _bytes(chosen: Selection, row: int) -> Hashable:
    if isinstance(chosen, bool):
        return chosen
    return _row(chosen, row) if bool(chosen[row].any()) else False


def _row(values: Tensor, row: int) -> Hashable:
    return tuple(values[row].tolist())


def _group(rows: Sequence[int], program: Program) -> Group:
    mine = [i for i, one in enumerate(program.plan) if one.rows is None or rows[0] in one.rows]
    own = [program.plan[i] for i in mine]
    plan = Plan(tuple(one if one.rows is None else one.on_rows([0]) for one in own))
    return Group(tuple(rows), plan, tuple(mine))
