"""A decoder's block that reads an encoder, with its norms after what is added, as BART has them.

Notable: as in `post_norm.py`, `hook_resid_post` is the sum before the last norm, and the next block
reads `hook_normalized_resid_post`; `hook_cross_attn_in` is what the queries across alone read.
"""

from typing import final

from typing_extensions import override

from workbench.core.axes import Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import At, Pass
from workbench.models.layers.cross_attention import Across, CrossAttention
from workbench.models.layers.cross_block import AnyCrossBlock
from workbench.models.layers.inputs import Inputs
from workbench.models.layers.mlp import FeedForward
from workbench.models.layers.norm import NoNorm, Norm


@final
class PostCrossBlock(AnyCrossBlock):
    """m = ln1(x + attn(x)); c = ln2(m + cross(m)); ln3(c + mlp(c))."""

    def __init__(  # noqa: PLR0913 - the parts of a block
        self,
        at: At,
        *,
        attn: Attention,
        ln1: Norm,
        cross: CrossAttention,
        ln2: Norm,
        mlp: FeedForward,
        ln3: Norm,
    ) -> None:
        super().__init__()
        self.attn, self.ln1, self.cross, self.ln2 = attn, ln1, cross, ln2
        self.mlp, self.ln3 = mlp, ln3
        self.as_it_is = NoNorm()
        self.inputs = Inputs(attn.n_heads, attn.n_groups, at)
        self.at_pre, self.at_attn_out = at("hook_resid_pre"), at("hook_attn_out")
        self.at_mid, self.at_cross_in = at("hook_resid_mid"), at("hook_cross_attn_in")
        self.at_cross_out, self.at_crossed = at("hook_cross_attn_out"), at("hook_resid_mid_cross")
        self.at_mlp_in, self.at_mlp_out = at("hook_mlp_in"), at("hook_mlp_out")
        self.at_post, self.at_normalized = at("hook_resid_post"), at("hook_normalized_resid_post")
        attention = (self.at_pre, *self.inputs.sites, *attn.sites, self.at_attn_out)
        across = (self.at_mid, *ln1.sites, self.at_cross_in, *cross.sites, self.at_cross_out)
        neurons = (self.at_crossed, *ln2.sites, self.at_mlp_in, *mlp.sites, self.at_mlp_out)
        ends = (self.at_post, *ln3.sites, self.at_normalized)
        self.sites: Sites = (*attention, *across, *neurons, *ends)

    @override
    def step(self, resid: Resid, tap: Tap, now: Pass, across: Across) -> Resid:
        resid = tap(self.at_pre, resid)
        written = self.attn.attend(self.inputs.read(resid, self.as_it_is, tap), tap, now)
        resid = tap(self.at_mid, resid + tap(self.at_attn_out, written))
        middle = self.ln1.normalise(resid, tap)
        written = self.cross.attend(tap(self.at_cross_in, middle), tap, across)
        resid = tap(self.at_crossed, middle + tap(self.at_cross_out, written))
        middle = self.ln2.normalise(resid, tap)
        written = self.mlp.feed(tap(self.at_mlp_in, middle), tap)
        resid = tap(self.at_post, middle + tap(self.at_mlp_out, written))
        return tap(self.at_normalized, self.ln3.normalise(resid, tap))
