"""The feed-forward bricks: plain and gated, and none at all."""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.config import Activation
from workbench.models.layers.context import At
from workbench.models.layers.linear import Linear, Tiled
from workbench.models.layers.norm import Norm

Neurons = Float[Tensor, "batch pos d_mlp"]


class FeedForward(nn.Module, ABC):
    """What a block does to each position by itself."""

    sites: Sites

    @abstractmethod
    def feed(self, x: Resid, tap: Tap) -> Resid:
        """What the neurons write, from the normalised stream."""


@final
class MLP(FeedForward):
    """act(x W_in) W_out; with a `norm` of the neurons, norm(act(x W_in)) W_out."""

    def __init__(
        self,
        d_model: int,
        d_mlp: int,
        act: Activation,
        at: At,
        *,
        bias: bool,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.up = Linear(d_model, d_mlp, bias=bias)
        self.down = Linear(d_mlp, d_model, bias=bias)
        self.act, self.ln = act, norm
        self.at_pre, self.at_post = at("mlp.hook_pre"), at("mlp.hook_post")
        self.at_mid = at("mlp.hook_mid")
        between = () if norm is None else (self.at_mid, *norm.sites)
        self.sites = (self.at_pre, *between, self.at_post)

    @override
    def feed(self, x: Resid, tap: Tap) -> Resid:
        post = self.act(tap(self.at_pre, self.up(x)))
        if self.ln is not None:
            post = self.ln.normalise(tap(self.at_mid, post), tap)
        return self.down(tap(self.at_post, post))


@final
class GatedMLP(FeedForward, Tiled):
    """(act(x W_gate) * x W_in) W_out; `hook_pre` is the gate's, `hook_pre_linear` the other's.

    `inner_bias` adds a bias after the product, where classic weights have theirs; `bias` is of the
    three matrices.
    """

    def __init__(
        self,
        d_model: int,
        d_mlp: int,
        act: Activation,
        at: At,
        *,
        bias: bool,
        inner_bias: bool = False,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_mlp, bias=bias)
        self.up = nn.Linear(d_model, d_mlp, bias=bias)
        self.bias = bias
        self.down = Linear(d_mlp, d_model, bias=bias)
        self.inner = nn.Parameter(torch.empty(d_mlp)) if inner_bias else None
        self.act = act
        self.at_pre, self.at_post = at("mlp.hook_pre"), at("mlp.hook_post")
        self.at_linear = at("mlp.hook_pre_linear")
        self.sites = (self.at_pre, self.at_linear, self.at_post)

    @override
    def feed(self, x: Resid, tap: Tap) -> Resid:
        gate, up = self._read(x)
        post = self.act(tap(self.at_pre, gate)) * tap(self.at_linear, up)
        post = post if self.inner is None else post + self.inner
        return self.down(tap(self.at_post, post))

    @override
    def matrices(self) -> tuple[Tensor, ...]:
        return () if self.bias else (self.gate.weight, self.up.weight)

    def _read(self, x: Resid) -> tuple[Neurons, Neurons]:
        """Both products: by tiles, which hold both matrices, or one after the other."""
        tiles = self.ready(x)
        if tiles is None:
            return self.gate(x), self.up(x)
        gate, up = tiles.multiply(x, None).chunk(2, -1)
        return gate, up
