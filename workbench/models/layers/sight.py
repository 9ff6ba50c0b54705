"""What the queries of two streams see: how far keys are, of which segment, and which at all.

Notable: distances are of content positions, so padding on either side changes none; the memory of
an earlier segment stands right before the first token, and is of segment 0.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.axes import Segment
from workbench.core.data import Batch
from workbench.core.errors import ShapeError

Pairs = Int[Tensor, "row query key"]
Masked = Bool[Tensor, "row group query key"]  # group: 1 or each head


@final
@dataclass(frozen=True)
class Rules:
    """How a model's distances are embedded, and whom its attention never sees.

    With `forward` no query looks ahead, and with `same_length` none looks back further than the
    memory is long. Distances end at `clamp`. Of a segment `reuse` tokens are remembered, of all
    segments the last `length`; None: all.
    """

    d_model: int
    forward: bool = False
    same_length: bool = False
    clamp: int | None = None
    length: int | None = None
    reuse: int | None = None


@final
@dataclass(frozen=True, eq=False)
class Sight:
    """What the queries of one stream see.

    `near` tells which of the table's distances is that to each key; `differs` whether its segment
    is another, None where there are no segments. `alike` are keys that have a score of 0, whatever
    they are: those of queries that see none.
    """

    near: Pairs
    differs: Bool[Tensor, "row query key"] | None
    hidden: Masked | None
    alike: Masked | None = None


@final
@dataclass(frozen=True, eq=False)
class Surroundings:
    """What all blocks of one pass share."""

    table: Float[Tensor, "distance d_model"]
    content: Sight
    query: Sight | None
    memory: Segment


def surroundings(
    batch: Batch,
    targets: Int[Tensor, "batch target"] | None,
    rules: Rules,
    dtype: torch.dtype,
) -> Surroundings:
    """What the queries of a content stream see, and those of its targets.

    Raises:
        ShapeError: If a mask of the batch's own has not its columns.
    """
    past = batch.memory[0].shape[1] if batch.memory else 0
    own = batch.positions
    keys = torch.cat([torch.arange(-past, 0, device=own.device).expand(len(own), -1), own], 1)
    apart = own[:, :, None] - keys[:, None, :]  # batch query key
    far = apart if batch.backward is None else apart * (1 - 2 * batch.backward.int())[:, None, None]
    far = far if rules.clamp is None else far.clamp(-rules.clamp, rules.clamp)
    low, high = int(far.min()), int(far.max())
    whole = Sight(far - low, _differs(batch, past), _hidden(batch, apart, past, rules))
    query = None if targets is None else _of(whole, targets, _seen_at_all(batch, past))
    content = _with_themselves(whole, past)
    table = sinusoids(torch.arange(low, high + 1, device=own.device), rules.d_model).to(dtype)
    return Surroundings(table, content, query, batch.memory)


def sinusoids(
    distances: Int[Tensor, " distance"], d_model: int
) -> Float[Tensor, "distance d_model"]:
    """Sines, then cosines, of distances times d_model / 2 frequencies; in float32."""
    steps = torch.arange(0, d_model, 2.0, device=distances.device)
    frequencies = 1 / torch.pow(10000, steps / d_model)
    angles = distances.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def _differs(batch: Batch, past: int) -> Bool[Tensor, "row query key"] | None:
    if batch.types is None:
        return None
    keys = torch.nn.functional.pad(batch.types, (past, 0))
    return batch.types[:, :, None] != keys[:, None, :]


def _hidden(batch: Batch, apart: Pairs, past: int, rules: Rules) -> Masked | None:
    """Which keys a query does not see, itself among them where the batch says so.

    Raises:
        ShapeError: If a mask of the batch's own has not its columns.
    """
    hidden: Tensor = torch.zeros_like(apart, dtype=torch.bool)[:, None]
    if rules.forward:
        hidden = hidden | (apart < 0)[:, None]
    if rules.forward and rules.same_length:
        hidden = hidden | (apart > past)[:, None]
    if batch.seen is not None:
        queries = batch.tokens.shape[1]
        if batch.seen.shape[2:] != (queries, queries):
            wanted = f"({queries}, {queries}) (query key)"
            raise ShapeError("Batch.seen", wanted, f"{tuple(batch.seen.shape[2:])}")
        hidden = hidden | torch.nn.functional.pad(~batch.seen, (past, 0))
    if batch.real is not None:
        hidden = hidden | ~_seen_at_all(batch, past)
    return hidden if bool(hidden.any()) else None


def _seen_at_all(batch: Batch, past: int) -> Bool[Tensor, "batch 1 1 key"]:
    """Which keys are no pads."""
    real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
    return torch.nn.functional.pad(real, (past, 0), value=True)[:, None, None]


def _with_themselves(whole: Sight, past: int) -> Sight:
    """The content stream's: a token always sees itself."""
    if whole.hidden is None:
        return whole
    queries = whole.near.shape[1]
    others = ~torch.eye(queries, dtype=torch.bool, device=whole.near.device)
    others = torch.nn.functional.pad(others, (past, 0), value=True)
    return Sight(whole.near, whole.differs, whole.hidden & others)


def _of(
    whole: Sight, targets: Int[Tensor, "batch target"], real: Bool[Tensor, "batch 1 1 key"]
) -> Sight:
    """The query stream's: what the tokens at its targets see, themselves only if they may."""
    near, differs = _rows(whole.near, targets), whole.differs
    differs = None if differs is None else _rows(differs, targets)
    if whole.hidden is None:
        return Sight(near, differs, None)
    at = targets[:, None, :, None]
    hidden = whole.hidden
    hidden = hidden.gather(2, at.expand(-1, hidden.shape[1], -1, hidden.shape[3]))
    blind = hidden.all(-1, keepdim=True)
    if not bool(blind.any()):
        return Sight(near, differs, hidden)
    alike = blind & real
    return Sight(near, differs, hidden & ~alike, alike)


def _rows(pairs: Tensor, targets: Int[Tensor, "batch target"]) -> Tensor:
    return pairs.gather(1, targets[:, :, None].expand(-1, -1, pairs.shape[2]))
