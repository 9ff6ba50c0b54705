"""Attention: one fused kernel, unless someone asks for scores, pattern or a head's result."""

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from workbench.core.axes import Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import Angles, At, Pass, View
from workbench.models.layers.disentangled import Disentangled
from workbench.models.layers.inputs import PerHead, Split
from workbench.models.layers.linear import Linear
from workbench.models.layers.norm import NoNorm, Norm
from workbench.models.layers.positions import rotate

Heads = Float[Tensor, "batch pos head d_head"]
HeadsFirst = Float[Tensor, "batch head pos d_head"]
OneMore = Float[Tensor, "batch head pos+1 d_head"]


@final
class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; `scale` multiplies the scores.

    With `cap`, scores s are cap tanh(s / cap), before what positions add to them, which no fused
    kernel does. `turn` rotates queries
    and keys of a `rotary` layer, by the pass's angles or, if `local`, by its local ones; `q_norm`
    and `k_norm` come before. A `window` is how many tokens a query sees, itself among them. With
    `sinks`, each head has one more score, which takes its part of the pattern and writes nothing.
    With `clip`, queries, keys and values lie between -clip and clip.
    `relative` adds to the scores what distances make of queries and keys.
    """

    def __init__(  # noqa: PLR0913 - the sizes and choices of the brick
        self,
        layer: int,
        d_model: int,
        n_heads: int,
        n_key_value_heads: int,
        d_head: int,
        at: At,
        *,
        scale: float,
        rotary: bool,
        bias: bool,
        out_bias: bool,
        turn: Callable[[Heads, Angles], Heads] = rotate,
        cap: float | None = None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        window: int | None = None,
        local: bool = False,
        sinks: bool = False,
        clip: float | None = None,
        relative: Disentangled | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.n_heads, self.n_groups = layer, n_heads, n_key_value_heads
        self.d_head, self.scale, self.bias, self.out_bias = d_head, scale, bias, out_bias
        self.turn, self.cap, self.clip = turn, cap, clip
        self.window, self.rotary, self.local = window, rotary, local
        self.q = Linear(d_model, n_heads * d_head, bias=bias)
        self.k = Linear(d_model, n_key_value_heads * d_head, bias=bias)
        self.v = Linear(d_model, n_key_value_heads * d_head, bias=bias)
        self.o = Linear(n_heads * d_head, d_model, bias=out_bias)
        self.q_norm, self.k_norm = q_norm or NoNorm(), k_norm or NoNorm()
        self.relative = relative
        self.sinks = nn.Parameter(torch.empty(n_heads)) if sinks else None
        self.at_q, self.at_k = at("attn.hook_q"), at("attn.hook_k")
        self.at_v, self.at_z = at("attn.hook_v"), at("attn.hook_z")
        self.at_rot_q, self.at_rot_k = at("attn.hook_rot_q"), at("attn.hook_rot_k")
        self.at_scores, self.at_pattern = at("attn.hook_attn_scores"), at("attn.hook_pattern")
        self.at_result = at("attn.hook_result")
        rotated = (self.at_rot_q, self.at_rot_k) if rotary else ()
        inside = (self.at_scores, self.at_pattern, self.at_z, self.at_result)
        normed = (*self.q_norm.sites, *self.k_norm.sites)
        self.sites: Sites = (self.at_q, self.at_k, self.at_v, *normed, *rotated, *inside)

    def attend(self, x: Resid | Split, tap: Tap, now: Pass) -> Resid:
        """What the heads write, from the normalised stream or what each of them reads of it."""
        of_q, of_k, of_v = x if isinstance(x, Split) else (x, x, x)
        q = tap(self.at_q, self.project(self.q, of_q))
        k = tap(self.at_k, self.project(self.k, of_k))
        v = tap(self.at_v, self.project(self.v, of_v))  # batch pos head d_head
        q, k = self.q_norm.normalise(q, tap), self.k_norm.normalise(k, tap)
        angles = now.local if self.local else now.angles
        if self.rotary and angles is not None:
            q = tap(self.at_rot_q, self.turn(q, angles))
            k = tap(self.at_rot_k, self.turn(k, angles))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # batch head pos d_head
        if now.cache is not None:
            k, v = now.cache.append(self.layer, k, v)
        return self.read(q, k, v, tap, now)

    def read(self, q: HeadsFirst, k: Tensor, v: Tensor, tap: Tap, now: Pass) -> Resid:
        """What the heads write of all keys and values (batch head key d_head)."""
        z = tap(self.at_z, self._mix(q, k, v, tap, now).transpose(1, 2))  # batch pos head d_head
        return self._out(z, tap)

    def project(self, linear: nn.Linear, x: Resid | PerHead) -> Heads:
        """One of the three linear maps, of one stream or of one for each head."""
        y = self._linear(linear, x)
        return y if self.clip is None else y.clamp(-self.clip, self.clip)

    def _linear(self, linear: nn.Linear, x: Resid | PerHead) -> Heads:
        if x.ndim == 3:
            return linear(x).reshape(*x.shape[:2], -1, self.d_head)
        by_head = rearrange(linear.weight, "(head d) d_model -> head d d_model", d=self.d_head)
        y = einsum(x, by_head, "batch pos head d_model, head d d_model -> batch pos head d")
        return y + linear.bias.unflatten(0, (-1, self.d_head)) if self.bias else y

    def _mix(self, q: HeadsFirst, k: Tensor, v: Tensor, tap: Tap, now: Pass) -> HeadsFirst:
        view = now.view(self.window)
        if self.relative is not None:
            view = view.with_bias(self.relative.bias(q, k))
        if self.cap is not None or tap.wants(self.at_scores) or tap.wants(self.at_pattern):
            return self._mix_openly(q, k, v, tap, view)
        mask, causal = view.visible, view.causal
        if view.bias is not None:
            mask, causal = view.bias, False
        if self.sinks is not None:
            k, v, mask, causal = *_with_column(k, v), self._sunk(q, k, view), False
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=self.n_heads != self.n_groups,
        )

    def _sunk(self, q: HeadsFirst, k: Tensor, view: View) -> Float[Tensor, "mask head query key"]:
        """What is added to the scores, with the sinks as a column behind those of the keys."""
        added = view.bias
        if added is None:
            zeros = q.new_zeros(1, self.n_heads, q.shape[2], k.shape[2])
            hidden = view.hidden(zeros)
            added = zeros if hidden is None else zeros.masked_fill(hidden, float("-inf"))
        return torch.cat([added.to(q), self._sinks(added).to(q)], -1)

    def _sinks(self, like: Tensor) -> Float[Tensor, "batch head query 1"]:
        assert self.sinks is not None  # both callers have asked
        return self.sinks.to(like)[None, :, None, None].expand(len(like), -1, like.shape[2], 1)

    def _mix_openly(self, q: HeadsFirst, k: Tensor, v: Tensor, tap: Tap, view: View) -> HeadsFirst:
        each = self.n_heads // self.n_groups
        k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
        wide = q.float() if q.dtype in (torch.float16, torch.bfloat16) else q
        scores = einsum(
            wide, k.to(wide), "batch head query d, batch head key d -> batch head query key"
        )
        scores = scores * self.scale
        scores = scores if self.cap is None else self.cap * (scores / self.cap).tanh()
        scores = scores if view.bias is None else scores + view.bias
        hidden = view.hidden(scores)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        scores = tap(self.at_scores, scores)
        if hidden is not None:  # a tap may write there; nobody may look ahead, or at a pad
            scores = scores.masked_fill(hidden, float("-inf"))
        pattern = self._softmax(scores)
        if (
            view.blind and view.visible is not None
        ):  # as the fused kernel has it: who sees nobody reads nothing
            pattern = pattern.masked_fill(~view.visible.any(-1, keepdim=True), 0.0)
        pattern = tap(self.at_pattern, pattern)
        if hidden is not None:
            pattern = pattern.masked_fill(hidden, 0.0)
        return einsum(
            pattern.to(v), v, "batch head query key, batch head key d -> batch head query d"
        )

    def _softmax(self, scores: Tensor) -> Tensor:
        if self.sinks is None:
            return scores.softmax(-1)
        return torch.cat([scores, self._sinks(scores)], -1).softmax(-1)[..., :-1]

    def _out(self, z: Heads, tap: Tap) -> Resid:
        if not tap.wants(self.at_result):
            return self.o(z.flatten(2))
        by_head = rearrange(self.o.weight, "d_model (head d) -> head d d_model", d=self.d_head)
        result = einsum(z, by_head, "batch pos head d, head d d_model -> batch pos head d_model")
        total = tap(self.at_result, result).sum(2)
        return total + self.o.bias if self.out_bias else total


def _with_column(k: HeadsFirst, v: HeadsFirst) -> tuple[OneMore, OneMore]:
    """Keys and values with one more of each, all zeros."""
    return F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
