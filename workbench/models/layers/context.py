"""What the bricks of one pass share: where sites are, rotation angles, and who may see whom."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
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


def outside_blocks(name: str) -> Site:
    """The sites before and after the blocks."""
    return Site(name)


Visible = Bool[Tensor, "mask group query key"]  # group: 1 or each head


@final
@dataclass(frozen=True, eq=False)
class Pass:
    """One pass through the blocks: angles of rotation, who sees whom, and the cache.

    `visible` is None where the fused kernel's own rule says the same: every earlier key if
    `causal`, else every key. `blind` says that some query may see none at all.
    """

    angles: Angles | None
    visible: Visible | None
    causal: bool
    cache: Cache | None
    blind: bool = False


def visibility(batch: Batch, cache: Cache | None, *, causal: bool) -> tuple[Visible | None, bool]:
    """Which keys each query sees, as a mask or, where that suffices, as a rule (None, causal).

    A pad sees itself, so that no row of the softmax is empty; nobody sees a pad. A mask of the
    batch's own takes away from that.

    Raises:
        ShapeError: If that mask has not the keys of this pass and those in the cache.
    """
    queries, padded = batch.tokens.shape[1], batch.real is not None
    past = 0
    keys_real = batch.real
    if cache is not None:
        past = cache.length
        real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
        keys_real = cache.reserve(real, padded=padded)
        padded = cache.padded
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
    if padded and keys_real is not None:
        itself = torch.eye(queries, dtype=torch.bool, device=seen.device)
        itself = torch.nn.functional.pad(itself, (past, 0))
        visible = (visible & keys_real[:, None, None, :]) | itself
    return visible, False
