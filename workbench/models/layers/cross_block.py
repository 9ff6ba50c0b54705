"""A decoder's pre-norm block that reads an encoder between its attention and its neurons."""

from abc import ABC, abstractmethod
from typing import final

from torch import nn
from typing_extensions import override

from workbench.core.axes import Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import At, Pass
from workbench.models.layers.cross_attention import Across, CrossAttention
from workbench.models.layers.inputs import Inputs
from workbench.models.layers.mlp import FeedForward
from workbench.models.layers.norm import Norm


class AnyCrossBlock(nn.Module, ABC):
    """One layer of a decoder that reads a memory: the stream in, the stream out."""

    sites: Sites

    @abstractmethod
    def step(self, resid: Resid, tap: Tap, now: Pass, across: Across) -> Resid:
        """The stream after this block."""


@final
class CrossBlock(AnyCrossBlock):
    """x + attn(ln1 x), then + cross(ln2 x), then + mlp(ln3 x)."""

    def __init__(  # noqa: PLR0913 - the parts of a block
        self,
        at: At,
        *,
        ln1: Norm,
        attn: Attention,
        ln2: Norm,
        cross: CrossAttention,
        ln3: Norm,
        mlp: FeedForward,
    ) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2, self.cross = ln1, attn, ln2, cross
        self.ln3, self.mlp = ln3, mlp
        self.inputs = Inputs(attn.n_heads, attn.n_groups, at)
        self.at_pre, self.at_attn_out = at("hook_resid_pre"), at("hook_attn_out")
        self.at_mid, self.at_cross_in = at("hook_resid_mid"), at("hook_cross_attn_in")
        self.at_cross_out, self.at_crossed = at("hook_cross_attn_out"), at("hook_resid_mid_cross")
        self.at_mlp_in, self.at_mlp_out = at("hook_mlp_in"), at("hook_mlp_out")
        self.at_post = at("hook_resid_post")
        attention = (self.at_pre, *self.inputs.sites, *ln1.sites, *attn.sites, self.at_attn_out)
        across = (self.at_mid, self.at_cross_in, *ln2.sites, *cross.sites, self.at_cross_out)
        neurons = (self.at_crossed, self.at_mlp_in, *ln3.sites, *mlp.sites, self.at_mlp_out)
        self.sites: Sites = (*attention, *across, *neurons, self.at_post)

    @override
    def step(self, resid: Resid, tap: Tap, now: Pass, across: Across) -> Resid:
        resid = tap(self.at_pre, resid)
        written = self.attn.attend(self.inputs.read(resid, self.ln1, tap), tap, now)
        resid = tap(self.at_mid, resid + tap(self.at_attn_out, written))
        read = self.ln2.normalise(tap(self.at_cross_in, resid), tap)
        written = self.cross.attend(read, tap, across)
        resid = tap(self.at_crossed, resid + tap(self.at_cross_out, written))
        read = self.ln3.normalise(tap(self.at_mlp_in, resid), tap)
        resid = resid + tap(self.at_mlp_out, self.mlp.feed(read, tap))
        return tap(self.at_post, resid)
