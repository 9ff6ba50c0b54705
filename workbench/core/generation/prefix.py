"""What prompts of a batch begin with in common, and which rows a plan treats alike there.

Notable: which rows share what is decided by the prompts alone, and each kind of row runs it as a
batch of one; so a row keeps its bytes whatever plans its neighbours have. A family of rows shares
one beginning; a row outside any family runs alone what it has more than they have left.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.cache import KeyValueCache
from workbench.core.data import Batch
from workbench.core.interventions import Intervention
from workbench.core.operators import Function
from workbench.core.plan import Plan
from workbench.core.program import Program
from workbench.core.standing import Selection

SHORTEST = 16  # tokens: below, one pass more costs what it saves


@final
@dataclass(frozen=True)
class Beginning:
    """The first tokens of some rows, which are the same in all of them."""

    rows: tuple[int, ...]
    length: int


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Rows that are alike in a beginning, with the plan of one of them."""

    rows: tuple[int, ...]
    plan: Plan
    # Of each of its interventions: where it stands in the whole plan, for which of the rows.
    places: tuple[Mapping[int, Sequence[int]], ...]


def beginnings(batch: Batch, program: Program) -> tuple[Beginning, ...]:
    """What is run before the rest of the prompts; nothing where that saves nothing.

    At least one token of every row is left, to choose the next from. A bare function may look at
    the whole batch, and an operand with a row for each has to meet all of them: beside these,
    nothing is shared.
    """
    if len(batch.tokens) < 2 or any(_whole(one) for one in program.plan):
        return ()
    rows = [
        tuple(row[:n])
        for row, n in zip(batch.place.content.tolist(), batch.prompt.tolist(), strict=True)
    ]
    families = _families(rows)
    found = (*families, *_alone(rows, families))
    left = _left(rows, found)
    cost = sum(one.length + SHORTEST for one in found) + len(rows) * max(left)
    return found if families and cost < len(rows) * max(map(len, rows)) else ()


def columns(batch: Batch, found: Sequence[Beginning]) -> int:
    """How many columns the prompts take in a cache, with the gaps that beginnings leave."""
    done = torch.zeros_like(batch.prompt)
    for one in found:
        done[list(one.rows)] = one.length
    return int(done.max()) + int((batch.prompt - done).max())


def _families(rows: Sequence[tuple[int, ...]]) -> tuple[Beginning, ...]:
    """The division of rows into such as begin alike that spares the most tokens."""
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    alike = [_common(rows[one], rows[other]) for one, other in pairwise(order)]
    best: list[tuple[int, tuple[Beginning, ...]]] = [(0, ())]  # by how many rows are divided
    for end, row in enumerate(order):
        choice, length = best[end], len(rows[row]) - 1
        for start in range(end - 1, -1, -1):  # rows in order: neighbours are the most alike
            length = min(length, alike[start], len(rows[order[start]]) - 1)
            if length < SHORTEST:
                break
            spared = best[start][0] + length * (end - start) - SHORTEST
            if spared > choice[0]:
                family = Beginning(tuple(sorted(order[start : end + 1])), length)
                choice = spared, (*best[start][1], family)
        best.append(choice)
    return best[-1][1]


def _alone(rows: Sequence[tuple[int, ...]], families: Sequence[Beginning]) -> Iterator[Beginning]:
    """What other rows have more than the rest of these: to run it together would be for all."""
    inside = {row for family in families for row in family.rows}
    rest = max((len(rows[r]) - one.length for one in families for r in one.rows), default=0)
    for row, ids in enumerate(rows):
        if row not in inside and len(ids) - rest >= SHORTEST:
            yield Beginning((row,), len(ids) - rest)


def _left(rows: Sequence[tuple[int, ...]], found: Sequence[Beginning]) -> list[int]:
    """How many tokens of each row are still to be run."""
    left = list(map(len, rows))
    for one in found:
        for row in one.rows:
            left[row] -= one.length
    return left


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def groups(batch: Batch, beginning: Beginning, program: Program) -> tuple[Group, ...]:
    """The rows of a beginning, those together that the plan treats alike there."""
    at, n = list(beginning.rows), beginning.length
    place = Batch(batch.place.content[at, :n], None, batch.start[at], batch.prompt[at]).place
    chosen = [scope.select(place) for scope in program.scopes]
    steps = [None if one.schedule is None else one.schedule.at(place) for one in program.plan]
    alike: dict[Hashable, dict[int, list[int]]] = {}
    for i, row in enumerate(at):
        acting = [
            j
            for j, one in enumerate(program.plan)
            if one.size != 0 and (one.rows is None or row in one.rows) and _acts(chosen[j], i)
        ]
        key = tuple((_same(program.plan[j]), _row(chosen[j], i), _row(steps[j], i)) for j in acting)
        alike.setdefault(key, {})[row] = acting
    return tuple(_group(acting, program) for acting in alike.values())


def join(
    cache: KeyValueCache,
    filled: Sequence[tuple[Sequence[int], KeyValueCache]],
    done: Int[Tensor, " batch"],
    n_layers: int,
) -> None:
    """Begins rows with the columns of caches of one row; pads follow where others have more."""
    width = int(done.max())
    real = torch.arange(width, device=done.device) < done[:, None]  # batch column
    cache.reserve(real, padded=not bool(real.all()))
    for layer in range(n_layers):
        cache.append(layer, *_together(layer, filled, len(real), width))


def _together(
    layer: int, filled: Sequence[tuple[Sequence[int], KeyValueCache]], n_rows: int, width: int
) -> tuple[Float[Tensor, "batch head pos d_head"], Tensor]:
    """The keys and values of one layer; zeros at pads, which nobody sees but all multiply with."""
    parts = [(list(rows), own.length, own.filled(layer)) for rows, own in filled]
    like = parts[0][2][0]
    keys = like.new_zeros(n_rows, like.shape[1], width, like.shape[3])
    values = torch.zeros_like(keys)
    for rows, length, (own_keys, own_values) in parts:
        keys[rows, :, :length], values[rows, :, :length] = own_keys, own_values
    return keys, values


def one_row(batch: Batch, row: int, columns: int) -> Batch:
    """The first tokens of a row, as a batch of its own."""
    tokens = batch.place.content[row : row + 1, :columns]
    return Batch(tokens, None, batch.start[row : row + 1], batch.prompt[row : row + 1])


def rest(batch: Batch, done: Int[Tensor, " batch"]) -> Batch:
    """The prompts after the first tokens of each, padded on the left."""
    content, lengths = batch.place.content, batch.prompt - done
    width = int(lengths.max())
    at = torch.arange(width, device=content.device) - (width - lengths)[:, None]  # batch pos
    tokens = content.gather(1, at.clamp(min=0) + done[:, None])
    real = None if bool((at >= 0).all()) else at >= 0
    return Batch(tokens, real, batch.start + done, batch.prompt, content)


def _whole(one: Intervention) -> bool:
    if isinstance(one.operator, Function):
        return True
    return any(value.ndim > 2 and len(value) > 1 for value in one.operator.tensors().values())


def _same(one: Intervention) -> Hashable:
    parts = one.sites, one.size, one.heads, one.neurons, one.keys
    return id(one.operator), id(one.gate), *parts


def _acts(chosen: Selection, row: int) -> bool:
    return chosen if isinstance(chosen, bool) else bool(chosen[row].any())


def _row(values: Selection | None, row: int) -> Hashable:
    return tuple(values[row].tolist()) if isinstance(values, Tensor) else values


def _group(acting: Mapping[int, Sequence[int]], program: Program) -> Group:
    """Rows, each with its own of interventions that are the same in all of them."""
    first = next(iter(acting.values()))
    own = [program.plan[i] for i in first]
    plan = Plan(tuple(one if one.rows is None else one.on_rows([0]) for one in own))
    places: list[dict[int, list[int]]] = [{} for _ in first]
    for row, indices in acting.items():
        for place, index in zip(places, indices, strict=True):
            place.setdefault(index, []).append(row)
    return Group(tuple(acting), plan, tuple(places))
