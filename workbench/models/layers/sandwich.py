"""A block with norms before and after attention and neurons, each of which may be none."""

from typing import final

from typing_extensions import override

from workbench.core.axes import Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.attention import Attention
from workbench.models.layers.block import AnyBlock
from workbench.models.layers.context import At, Pass
from workbench.models.layers.inputs import Inputs
from workbench.models.layers.mlp import FeedForward
from workbench.models.layers.norm import Norm


@final
class SandwichBlock(AnyBlock):
    """Each part reads the stream through one norm and writes to it through another.

    `hook_attn_out` and `hook_mlp_out` are what is added, after the second norm.
    """

    def __init__(  # noqa: PLR0913 - the parts of a block
        self,
        at: At,
        *,
        ln1: Norm,
        attn: Attention,
        ln1_post: Norm,
        ln2: Norm,
        mlp: FeedForward,
        ln2_post: Norm,
    ) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln1_post = ln1, attn, ln1_post
        self.ln2, self.mlp, self.ln2_post = ln2, mlp, ln2_post
        self.inputs = Inputs(attn.n_heads, attn.n_groups, at)
        self.at_pre, self.at_attn_out = at("hook_resid_pre"), at("hook_attn_out")
        self.at_mid, self.at_mlp_in = at("hook_resid_mid"), at("hook_mlp_in")
        self.at_mlp_out, self.at_post = at("hook_mlp_out"), at("hook_resid_post")
        read = (self.at_pre, *self.inputs.sites, *ln1.sites)
        attended = (*attn.sites, *ln1_post.sites, self.at_attn_out, self.at_mid)
        written = (self.at_mlp_in, *ln2.sites, *mlp.sites, *ln2_post.sites, self.at_mlp_out)
        self.sites: Sites = (*read, *attended, *written, self.at_post)

    @override
    def step(self, resid: Resid, tap: Tap, now: Pass) -> Resid:
        resid = tap(self.at_pre, resid)
        written = self.attn.attend(self.inputs.read(resid, self.ln1, tap), tap, now)
        resid = resid + tap(self.at_attn_out, self.ln1_post.normalise(written, tap))
        resid = tap(self.at_mid, resid)
        read = self.ln2.normalise(tap(self.at_mlp_in, resid), tap)
        written = self.ln2_post.normalise(self.mlp.feed(read, tap), tap)
        return tap(self.at_post, resid + tap(self.at_mlp_out, written))
