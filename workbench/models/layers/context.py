"""What the bricks of one pass share: where sites are, rotation angles, and who may see whom."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.cache import Cache
from workbench.core.data import Batch
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


@final
@dataclass(frozen=True, eq=False)
class Pass:
    """One pass through the blocks: angles of rotation, who sees whom, and the cache.

    `visible` is None where the fused kernel's own rule says the same: every earlier key if
    `causal`, else every key.
    """

    angles: Angles | None
    visible: Bool[Tensor, "row 1 query key"] | None
    causal: bool
    cache: Cache | None


def visibility(
    batch: Batch, cache: Cache | None, *, causal: bool
) -> tuple[Bool[Tensor, "row 1 query key"] | None, bool]:
    """Which keys each query sees, as a mask or, where that suffices, as a rule (None, causal).

    A pad sees itself, so that no row of the softmax is empty; nobody sees a pad.
    """
    queries, padded = batch.tokens.shape[1], batch.real is not None
    past = 0
    keys_real = batch.real
    if cache is not None:
        past = cache.length
        real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
        keys_real = cache.reserve(real, padded=padded)
        padded = cache.padded
    if not padded and (not causal or past == 0 or queries == 1):
        return None, causal and queries > 1
    seen = torch.ones(queries, past + queries, dtype=torch.bool, device=batch.tokens.device)
    if causal:
        seen = seen.tril(past)
    visible = seen[None, None]
    if padded and keys_real is not None:
        itself = torch.eye(queries, dtype=torch.bool, device=seen.device)
        itself = torch.nn.functional.pad(itself, (past, 0))
        visible = (visible & keys_real[:, None, None, :]) | itself
    return visible, False
