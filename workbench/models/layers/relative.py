"""Attention by content, distance and segment, as Transformer-XL and XLNet have it.

Dai et al. 2019, arXiv:1901.02860; Yang et al. 2019, arXiv:1906.08237. A score is
((q + u) k + (q + v) r(distance) + (q + w) s(same segment or not)) scale.
"""

from typing import final

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from workbench.core.axes import Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import At, Bias
from workbench.models.layers.inputs import PerHead
from workbench.models.layers.sight import Sight

Heads = Float[Tensor, "batch pos head d_head"]
OfKeys = Float[Tensor, "batch key head d_head"]  # those of a memory too
HeadsFirst = Float[Tensor, "batch head pos d_head"]


@final
class RelativeAttention(nn.Module):
    """One fused kernel, unless someone asks for scores, pattern or a head's result.

    Queries, keys and values have no biases of their own; those of the scores are added to queries
    after `hook_q`. `hook_attn_scores` is the whole sum.
    """

    def __init__(self, d_model: int, n_heads: int, d_head: int, at: At) -> None:
        super().__init__()
        self.n_heads, self.d_head, self.scale = n_heads, d_head, d_head**-0.5
        self.q, self.k, self.v, self.r = (
            nn.Linear(d_model, n_heads * d_head, bias=False) for _ in range(4)
        )
        self.o = nn.Linear(n_heads * d_head, d_model, bias=False)
        self.of_content, self.of_distance, self.of_segment = (
            nn.Parameter(torch.empty(n_heads, d_head)) for _ in range(3)
        )
        self.segments = nn.Parameter(torch.empty(2, n_heads, d_head))  # the same, another
        self.at_q, self.at_k, self.at_v = (at(f"attn.hook_{name}") for name in "qkv")
        self.at_scores, self.at_pattern = at("attn.hook_attn_scores"), at("attn.hook_pattern")
        self.at_z, self.at_result = at("attn.hook_z"), at("attn.hook_result")
        self.inside: Sites = (self.at_scores, self.at_pattern, self.at_z, self.at_result)
        self.sites: Sites = (self.at_q, self.at_k, self.at_v, *self.inside)

    def project(self, linear: nn.Linear, x: Resid | PerHead) -> Heads:
        """One of the linear maps, of one stream or of one for each head."""
        if x.ndim == 3:
            return linear(x).unflatten(-1, (self.n_heads, -1))
        by_head = rearrange(linear.weight, "(head d) d_model -> head d d_model", d=self.d_head)
        return einsum(x, by_head, "batch pos head d_model, head d d_model -> batch pos head d")

    def read(
        self,
        q: Heads,
        k: OfKeys,
        v: OfKeys,
        table: Float[Tensor, "distance d_model"],
        sight: Sight,
        tap: Tap,
    ) -> Resid:
        """What the heads write."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # batch head pos d_head
        bias = self._bias(q, table, sight)
        q = q + self.of_content[:, None]
        if sight.alike is not None or tap.wants(self.at_scores) or tap.wants(self.at_pattern):
            z = self._openly(q, k, v, bias, sight, tap)
        else:
            bias = bias if sight.hidden is None else bias.masked_fill(sight.hidden, float("-inf"))
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self._out(tap(self.at_z, z.transpose(1, 2)), tap)

    def _bias(self, q: HeadsFirst, table: Float[Tensor, "distance d_model"], sight: Sight) -> Bias:
        """The scores of distances and segments."""
        distances = self.r(table).unflatten(-1, (self.n_heads, -1))
        near = sight.near[:, None].expand(len(q), self.n_heads, -1, -1)
        along = einsum(
            q + self.of_distance[:, None],
            distances,
            "batch head query d, distance head d -> batch head query distance",
        )
        bias = along.gather(-1, near)
        if sight.differs is not None:
            same = einsum(
                q + self.of_segment[:, None],
                self.segments,
                "batch head query d, segment head d -> batch head query segment",
            )
            bias = bias + torch.where(sight.differs[:, None], same[..., 1:], same[..., :1])
        return bias * self.scale

    def _openly(
        self, q: HeadsFirst, k: Tensor, v: Tensor, bias: Bias, sight: Sight, tap: Tap
    ) -> HeadsFirst:
        wide = q.float() if q.dtype in (torch.float16, torch.bfloat16) else q
        scores = einsum(
            wide, k.to(wide), "batch head query d, batch head key d -> batch head query key"
        )
        scores, hidden = scores * self.scale + bias, sight.hidden
        if sight.alike is not None:
            scores = scores.masked_fill(sight.alike, 0.0)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        scores = tap(self.at_scores, scores)
        if hidden is not None:  # a tap may write there; nobody may look there
            scores = scores.masked_fill(hidden, float("-inf"))
        pattern = tap(self.at_pattern, scores.softmax(-1))
        if hidden is not None:
            pattern = pattern.masked_fill(hidden, 0.0)
        return einsum(
            pattern.to(v), v, "batch head query key, batch head key d -> batch head query d"
        )

    def _out(self, z: Heads, tap: Tap) -> Resid:
        if not tap.wants(self.at_result):
            return self.o(z.flatten(2))
        by_head = rearrange(self.o.weight, "d_model (head d) -> head d d_model", d=self.d_head)
        result = einsum(z, by_head, "batch pos head d, head d d_model -> batch pos head d_model")
        return tap(self.at_result, result).sum(2)
