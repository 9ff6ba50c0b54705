"""Attention across: queries of a decoder, keys and values of the memory its encoder left.

Notable: keys and values are made of the memory in the pass that reads the source, and come from the
cache in those after it; their sites are passed where they are made.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from workbench.core.axes import Memory, Resid
from workbench.core.sites import Site, Sites
from workbench.core.tap import Tap
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import At, Pass


@final
@dataclass(frozen=True, eq=False)
class Across:
    """What a decoder reads: the memory (None: the cache has its keys), and who sees whom of it."""

    memory: Memory | None
    now: Pass


@final
class CrossAttention(nn.Module):
    """Multi-head attention over a memory."""

    def __init__(  # noqa: PLR0913 - the sizes and choices of the brick
        self,
        layer: int,
        d_model: int,
        n_heads: int,
        d_head: int,
        at: At,
        *,
        scale: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.layer = layer

        def across(name: str) -> Site:
            return at(f"cross_{name}")

        self.inner = Attention(
            layer,
            d_model,
            n_heads,
            n_heads,
            d_head,
            across,
            scale=scale,
            rotary=False,
            bias=bias,
            out_bias=bias,
        )
        self.sites: Sites = self.inner.sites

    def attend(self, x: Resid, tap: Tap, across: Across) -> Resid:
        """What the heads write, from the normalised stream of the decoder."""
        inner = self.inner
        q = tap(inner.at_q, inner.project(inner.q, x)).transpose(1, 2)
        k, v = self._keys(tap, across)
        return inner.read(q, k, v, tap, across.now)

    def _keys(self, tap: Tap, across: Across) -> tuple[Tensor, Tensor]:
        """Keys and values (batch head key d_head), made here or kept from an earlier pass."""
        inner, cache = self.inner, across.now.cache
        if across.memory is None:
            assert cache is not None  # or the model would have refused the pass
            return cache.crossed(self.layer)
        k = tap(inner.at_k, inner.project(inner.k, across.memory)).transpose(1, 2)
        v = tap(inner.at_v, inner.project(inner.v, across.memory)).transpose(1, 2)
        if cache is not None:
            cache.cross(self.layer, k, v)
        return k, v
