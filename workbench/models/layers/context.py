"""What the bricks of one pass share: where sites are, rotation angles, and who may see whom."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, final

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


Windows = frozenset[int]
NO_WINDOWS: Windows = frozenset()


class View(NamedTuple):
    """Which keys a query sees, as a mask, or as a rule of the fused kernel.

    `visible` is None where that rule says the same: every earlier key if `causal`, else every key.
    `blind` says that some query may see none at all. `bias` is added to the scores; where there is
    one, it is -inf where a key is hidden, and all that the kernel needs.
    """

    visible: Visible | None
    causal: bool
    blind: bool = False
    bias: Bias | None = None

    def hidden(self, scores: Tensor) -> Bool[Tensor, "*any query key"] | None:
        """Which keys no query may see, in a shape that fits the scores; None: each sees all."""
        if self.visible is not None:
            return ~self.visible
        if self.causal:
            return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return None

    def with_bias(self, bias: Bias | None) -> "View":
        """The same with something added to the scores of keys that are seen."""
        if bias is None:
            return self
        hidden = self.hidden(bias)
        if hidden is None:
            return self._replace(bias=bias)
        return self._replace(bias=bias.masked_fill(hidden, float("-inf")))


@final
@dataclass(frozen=True, eq=False)
class Pass:
    """One pass through the blocks: angles of rotation, who sees whom, and the cache.

    `windows` tells who sees whom in layers that look back no further than so many tokens, and
    `local` the angles of layers that turn by frequencies of their own. `bias` is that of the view
    of layers without a window.
    """

    angles: Angles | None
    visible: Visible | None
    causal: bool
    cache: Cache | None
    blind: bool = False
    windows: Mapping[int, View] = field(default_factory=lambda: MappingProxyType({}))
    local: Angles | None = None
    bias: Bias | None = None

    def view(self, window: int | None) -> View:
        """Who sees whom in a layer of that window; None: as far back as there are keys."""
        if window is None:
            return View(self.visible, self.causal, self.blind, self.bias)
        return self.windows[window]


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
    past = cache.length
    real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
    every = cache.reserve(real, padded=batch.real is not None)
    return Columns(batch, past, every if cache.padded else None)


def visibility(batch: Batch, cache: Cache | None, *, causal: bool) -> tuple[Visible | None, bool]:
    """Which keys each query sees, as a mask or, where that suffices, as a rule (None, causal).

    A pad sees itself, so that no row of the softmax is empty; nobody sees a pad. A mask of the
    batch's own takes away from that.

    Raises:
        ShapeError: If that mask has not the keys of this pass and those in the cache.
    """
    whole = views(opened(batch, cache), NO_WINDOWS, causal=causal)[0]
    return whole.visible, whole.causal


def views(
    columns: Columns, windows: Windows, *, causal: bool, bias: Bias | None = None
) -> tuple[View, Mapping[int, View]]:
    """Who sees whom in layers without a window, and in those of each; the bias is in all of them.

    A window counts content tokens, the query's own among them; pads do not count. Where it is as
    wide as all keys, the view is that of a layer without.

    Raises:
        ShapeError: If a mask of the batch's own has not the keys of this pass and the cache's.
    """
    batch, past, real = columns.batch, columns.past, columns.real
    whole = _whole(batch, past, real, causal=causal)
    within = {width: _within(whole, width, batch, past, real) for width in windows}
    biased = {width: view.with_bias(bias) for width, view in within.items()}
    return whole.with_bias(bias), MappingProxyType(biased)


def _whole(batch: Batch, past: int, real: Tensor | None, *, causal: bool) -> View:
    queries, own = batch.tokens.shape[1], batch.seen
    if own is None and real is None and (not causal or past == 0 or queries == 1):
        return View(None, causal and queries > 1)
    seen = _every(batch, past)
    visible = (seen.tril(past) if causal else seen)[None, None]
    if own is not None:
        if own.shape[2:] != seen.shape:
            raise ShapeError("Batch.seen", f"{tuple(seen.shape)} (query key)", f"{own.shape[2:]}")
        visible = visible & own
    if real is not None:
        itself = torch.eye(queries, dtype=torch.bool, device=seen.device)
        itself = torch.nn.functional.pad(itself, (past, 0))
        visible = (visible & real[:, None, None, :]) | itself
    return View(visible, causal=False, blind=_leaves_blind(batch, visible))


def _within(whole: View, width: int, batch: Batch, past: int, real: Tensor | None) -> View:
    queries = batch.tokens.shape[1]
    if past + queries <= width and batch.keys is None:
        return whole
    at = _key_positions(batch, past, real)
    near = (at[:, past:, None] - at[:, None, :]).abs() < width  # row query key
    seen = _every(batch, past)[None, None] if whole.visible is None else whole.visible
    if whole.visible is None and whole.causal:
        seen = seen.tril(past)
    visible = seen & near[:, None]
    return View(visible, causal=False, blind=_leaves_blind(batch, visible))


def _key_positions(batch: Batch, past: int, real: Tensor | None) -> Int[Tensor, "row key"]:
    """Where each column's token stands, counted from any; a pad stands where the one before it."""
    if batch.keys is not None:
        return batch.keys.cummax(1).values
    if real is not None:
        return real.cumsum(1)
    return torch.arange(past + batch.tokens.shape[1], device=batch.tokens.device)[None]


def _every(batch: Batch, past: int) -> Bool[Tensor, "query key"]:
    queries = batch.tokens.shape[1]
    return torch.ones(queries, past + queries, dtype=torch.bool, device=batch.tokens.device)


def _leaves_blind(batch: Batch, visible: Tensor) -> bool:
    return batch.seen is not None and not bool(visible.any(-1).all())
