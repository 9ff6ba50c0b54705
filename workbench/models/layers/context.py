"""What the bricks of one pass share: where sites are, rotation angles, and who may see whom."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.cache import Cache
from workbench.core.data import Batch
from workbench.core.errors import ShapeError
from workbench.core.sites import Site

At = Callable[[str], Site]  # a brick's name for a site, "attn.hook_z", to the site
Angles = tuple[Float[Tensor, "row pos 1 d_rotary"], Float[Tensor, "row pos 1 d_rotary"]]


def in_block(layer: int) -> At:
    """The sites of one block."""

    def at(name: str) -> Site:
        return Site(f"blocks.{{}}.{name}", layer)

    return at


def in_stack(stack: str, layer: int) -> At:
    """The sites of one block of an encoder or a decoder."""

    def at(name: str) -> Site:
        return Site(f"{stack}.{{}}.{name}", layer)

    return at


def outside_blocks(name: str) -> Site:
    """The sites before and after the blocks."""
    return Site(name)


Visible = Bool[Tensor, "mask group query key"]  # group: 1 or each head
Bias = Float[Tensor, "row head query key"]  # row: 1 or each


@final
@dataclass(frozen=True, eq=False)
class Pass:
    """One pass through the blocks: angles of rotation, who sees whom, and the cache.

    `visible` is None where the fused kernel's own rule says the same: every earlier key if
    `causal`, else every key. `blind` says that some query may see none at all. `bias` is added to
    the scores of every layer.
    """

    angles: Angles | None
    visible: Visible | None
    causal: bool
    cache: Cache | None
    blind: bool = False
    bias: Bias | None = None

    @cached_property
    def mask(self) -> Visible | Bias | None:
        """What the fused kernel needs beside its own rule: who sees whom, or what is added."""
        if self.bias is None:
            return self.visible
        hidden = self.hidden(self.bias)
        return self.bias if hidden is None else self.bias.masked_fill(hidden, float("-inf"))

    def hidden(self, scores: Bias) -> Bool[Tensor, "*any query key"] | None:
        """Which keys no query may see, in a shape that fits the scores; None: each sees all."""
        if self.visible is not None:
            return ~self.visible
        if self.causal:
            return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return None


@final
@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a pass and those in the cache before it; `real` is None without pads."""

    batch: Batch
    past: int
    real: Bool[Tensor, "batch key"] | None

    @cached_property
    def queries(self) -> Int[Tensor, "row query"]:
        """The absolute position of each of the pass's own columns; one row for like ones."""
        return self.batch.positions[:1] if self._uniform else self.batch.positions

    @cached_property
    def keys(self) -> Int[Tensor, "row key"]:
        """The absolute position of each column; of a pad, that of the token before it, or 0."""
        start, width = self.batch.start[:, None], self.past + self.batch.tokens.shape[1]
        if self.real is None:
            start = start[:1] if self._uniform else start
            return start - self.past + torch.arange(width, device=start.device)
        before = self.real[:, : self.past].sum(1, keepdim=True)
        return (start - before + self.real.cumsum(1) - 1).clamp(min=0)

    @property
    def _uniform(self) -> bool:
        return self.real is None and self.batch.uniform


def opened(batch: Batch, cache: Cache | None) -> Columns:
    """The columns of a pass, for which room is made in the cache: to be called once for each."""
    if cache is None:
        return Columns(batch, 0, batch.real)
    past, padded = cache.length, batch.real is not None
    real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
    every = cache.reserve(real, padded=padded)
    return Columns(batch, past, every if cache.padded else None)


def visibility(columns: Columns, *, causal: bool) -> tuple[Visible | None, bool]:
    """Which keys each query sees, as a mask or, where that suffices, as a rule (None, causal).

    A pad sees itself, so that no row of the softmax is empty; nobody sees a pad. A mask of the
    batch's own takes away from that.

    Raises:
        ShapeError: If that mask has not the keys of this pass and those in the cache.
    """
    batch, past, keys_real = columns.batch, columns.past, columns.real
    queries, padded = batch.tokens.shape[1], keys_real is not None
    own = batch.seen
    if own is None and not padded and (not causal or past == 0 or queries == 1):
        return None, causal and queries > 1
    seen = torch.ones(queries, past + queries, dtype=torch.bool, device=batch.tokens.device)
    if causal:
        seen = seen.tril(past)
    visible = seen[None, None]
    if own is not None:
        if own.shape[2:] != seen.shape:
            raise ShapeError("Batch.seen", f"{tuple(seen.shape)} (query key)", f"{own.shape[2:]}")
        visible = visible & own
    if keys_real is not None:
        itself = torch.eye(queries, dtype=torch.bool, device=seen.device)
        itself = torch.nn.functional.pad(itself, (past, 0))
        visible = (visible & keys_real[:, None, None, :]) | itself
    return visible, False
