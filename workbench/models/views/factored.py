"""Queries and keys, values and outputs, in the basis in which each head's product is diagonal.

With x̃ = (x, 1) and biases as an extra row: W̃_Q W̃_Kᵀ = U S Vᵀ gives W̃_Q = U √S and W̃_K = V √S;
W_V W_O = U S Vᵀ gives W_V = U S and W_O = Vᵀ. Each head computes what it did.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.models.layers.attention import Attention
from workbench.models.layers.norm import NoNorm
from workbench.models.transformer import Stack
from workbench.models.views.stacks import bias_of, blocks_of, put

PerHead = Float[Tensor, "head d_in d_head"]


def refactor(stack: Stack) -> str | None:
    """Refactors every head in place; says why not, where an architecture does not allow it."""
    if stack.rotary is not None:
        return "rotary positions stand between queries and keys"
    if any(_changed(block.attn) for block in blocks_of(stack)):
        return "queries and keys are normalised or clipped before they meet"
    for block in blocks_of(stack):
        if block.attn.n_heads != block.attn.n_groups:
            return "grouped heads share their keys and values"
    for block in blocks_of(stack):
        _queries_and_keys(block.attn)
        _values_and_outputs(block.attn)
    return None


def _changed(attn: Attention) -> bool:
    norms = (attn.q_norm, attn.k_norm)
    return attn.clip is not None or any(not isinstance(norm, NoNorm) for norm in norms)


def _queries_and_keys(attn: Attention) -> None:
    q, k = (_extended(attn, linear.weight, bias_of(linear)) for linear in (attn.q, attn.k))
    u, s, v = _svd(q, k)
    root = s.sqrt()[:, None, :]
    for linear, part in ((attn.q, u * root), (attn.k, v * root)):
        weight = rearrange(part[:, :-1], "head d_model d -> (head d) d_model")
        put(linear, weight.contiguous(), rearrange(part[:, -1], "head d -> (head d)").contiguous())
    attn.bias = True
    if bias_of(attn.v) is None:  # all three have biases, or none
        put(attn.v, attn.v.weight, attn.v.weight.new_zeros(attn.v.weight.shape[0]))


def _values_and_outputs(attn: Attention) -> None:
    value = rearrange(attn.v.weight, "(head d) d_model -> head d_model d", d=attn.d_head)
    out = rearrange(attn.o.weight, "d_model (head d) -> head d_model d", d=attn.d_head)
    bias = bias_of(attn.v)
    if bias is not None and bool(bias.any()):
        by_head = rearrange(bias, "(head d) -> head d 1", d=attn.d_head)
        written = (out @ by_head).sum(0)[:, 0]
        old = bias_of(attn.o)
        put(attn.o, attn.o.weight, written if old is None else old + written)
        put(attn.v, attn.v.weight, torch.zeros_like(bias))
        attn.out_bias = True
    u, s, v = _svd(value, out)
    new = rearrange(u * s[:, None, :], "head d_model d -> (head d) d_model").contiguous()
    put(attn.v, new, None)
    put(attn.o, rearrange(v, "head d_model d -> d_model (head d)").contiguous(), None)


def _extended(attn: Attention, weight: Tensor, bias: Tensor | None) -> PerHead:
    by_head = rearrange(weight, "(head d) d_model -> head d_model d", d=attn.d_head)
    extra = torch.zeros_like(by_head[:, :1])
    if bias is not None:
        extra = rearrange(bias, "(head d) -> head 1 d", d=attn.d_head)
    return torch.cat([by_head, extra], 1)


def _svd(a: PerHead, b: PerHead) -> tuple[PerHead, Float[Tensor, "head d_head"], PerHead]:
    """The parts of A Bᵀ, without forming it: U, S and V of rank d_head."""
    qa, ra = torch.linalg.qr(a.double())
    qb, rb = torch.linalg.qr(b.double())
    u, s, vt = torch.linalg.svd(ra @ rb.mT)
    return (qa @ u).to(a), s.to(a), (qb @ vt.mT).to(a)
