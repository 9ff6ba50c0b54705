"""Blocks whose norms come after what is added: BERT and its relatives, and the first GPT.

Notable: the stream is normalised itself, so that the next block reads `hook_normalized_resid_post`,
and `hook_resid_post` is the sum before the last norm. Heads read the stream as it comes: nothing is
between `hook_resid_pre` and their inputs. `hook_mlp_in` is what the neurons alone read.
"""

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
from workbench.models.layers.norm import NoNorm, Norm


@final
class PostNormBlock(AnyBlock):
    """m = ln1(x + attn(x)); ln2(m + mlp(m))."""

    def __init__(self, at: At, *, attn: Attention, ln1: Norm, mlp: FeedForward, ln2: Norm) -> None:
        super().__init__()
        self.attn, self.ln1, self.mlp, self.ln2 = attn, ln1, mlp, ln2
        self.as_it_is = NoNorm()
        self.inputs = Inputs(attn.n_heads, attn.n_groups, at)
        self.at_pre, self.at_attn_out = at("hook_resid_pre"), at("hook_attn_out")
        self.at_mid, self.at_mlp_in = at("hook_resid_mid"), at("hook_mlp_in")
        self.at_mlp_out, self.at_post = at("hook_mlp_out"), at("hook_resid_post")
        self.at_normalized = at("hook_normalized_resid_post")
        attention = (self.at_pre, *self.inputs.sites, *attn.sites, self.at_attn_out)
        neurons = (self.at_mid, *ln1.sites, self.at_mlp_in, *mlp.sites, self.at_mlp_out)
        self.sites: Sites = (*attention, *neurons, self.at_post, *ln2.sites, self.at_normalized)

    @override
    def step(self, resid: Resid, tap: Tap, now: Pass) -> Resid:
        resid = tap(self.at_pre, resid)
        written = self.attn.attend(self.inputs.read(resid, self.as_it_is, tap), tap, now)
        resid = tap(self.at_mid, resid + tap(self.at_attn_out, written))
        middle = self.ln1.normalise(resid, tap)
        written = self.mlp.feed(tap(self.at_mlp_in, middle), tap)
        resid = tap(self.at_post, middle + tap(self.at_mlp_out, written))
        return tap(self.at_normalized, self.ln2.normalise(resid, tap))
