"""Folded weights: norms, means and value biases moved into the matrices that read or write them.

Notable: a view is a model of its own that shares every tensor that need not change; the model it
was made of stays as it is, and both may be used in turn. Every step keeps the log-probabilities,
and each view is checked on a few tokens before it is given out.
"""

from dataclasses import dataclass
from typing import final

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import Logits
from workbench.core.data import batch_of
from workbench.core.errors import OptionError
from workbench.core.options import flag
from workbench.core.protocols import Model
from workbench.core.tap import UNTAPPED
from workbench.models.layers.context import At, in_block, outside_blocks
from workbench.models.layers.experts import Experts
from workbench.models.layers.mlp import MLP, GatedMLP
from workbench.models.layers.norm import (
    LayerNorm,
    Norm,
    PlainLayerNorm,
    PlainRMSNorm,
    RMSNorm,
    ShiftedRMSNorm,
    UnbiasedLayerNorm,
)
from workbench.models.layers.sandwich import SandwichBlock
from workbench.models.transformer import PreNormBlock, Stack, Transformer
from workbench.models.views.factored import refactor
from workbench.models.views.stacks import bias_of, blocks_of, frozen, put, shared, words_of

TOLERANCE = 1e-3  # nats, in float32: deep models round to 1e-4, the least of real mistakes is 8e-3


@final
@dataclass(frozen=True)
class Parity:
    """How far a view is from its model: the largest difference of log-probabilities, in nats.

    `applied` names what was folded, `left_out` what this architecture does not allow, with reasons.
    """

    difference: float
    tokens: int
    applied: tuple[str, ...]
    left_out: tuple[str, ...]

    @override
    def __str__(self) -> str:
        skipped = f"; left out: {'; '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{', '.join(self.applied) or 'nothing'} applied; log-probabilities of {self.tokens} "
            f"random tokens differ by {self.difference:.1e} at most{skipped}"
        )


@final
@dataclass(frozen=True, eq=False)
class Folded:
    """A view of a model with folded weights, and how far it is from it."""

    model: Transformer
    parity: Parity


@final
@dataclass(frozen=True)
class Folding:
    """Which steps to take, in this order; the defaults are those of the classic loader.

    A step that an architecture does not allow is left out, and the parity says so.
    """

    fold_ln: bool = True
    center_writing_weights: bool = True
    center_unembed: bool = True
    fold_value_biases: bool = True
    refactor_factored_attn_matrices: bool = False

    def __post_init__(self) -> None:
        """Refuses what is no truth value.

        Raises:
            OptionError: If one is something else.
        """
        for name, value in vars(self).items():
            flag(name, value)


def fold(model: Transformer, folding: Folding | None = None) -> Folded:
    """A view with folded weights; costs two small forwards, and memory for what changes only.

    fold_ln: b += b_ln W, W <- diag(w_ln) W, and after a LayerNorm W minus its mean over d_model.
    center_writing_weights: what writes into the stream minus its mean over d_model; only where
    every norm is a LayerNorm. center_unembed: the unembedding minus its mean over the vocabulary.
    fold_value_biases: b_O += sum_h b_V[h] W_O[h], b_V = 0. Logits shift by one number per position.

    Raises:
        OptionError: If the model has two stacks or two streams, a step is asked for that cannot
            keep it as it is, or the view's log-probabilities are not the model's.
    """
    if type(model.stack) is not Stack:
        raise OptionError("model", "of one stack and one stream", repr(model))
    wanted = Folding() if folding is None else folding
    stack, applied, left_out = shared(model.stack), list[str](), list[str]()
    for name, step in STEPS.items():
        if not vars(wanted)[name]:
            continue
        reason = step(stack)
        if reason is None:
            applied.append(name)
        else:
            left_out.append(f"{name} ({reason})")
    suffix = "".join(f"+{name}" for name in applied)
    view = Transformer(
        stack,
        name=model.name,
        fingerprint=f"{model.fingerprint}{suffix}",
        tokenizer=model.tokenizer,
    )
    difference, tokens = _difference(model, view)
    parity = Parity(difference, tokens, tuple(applied), tuple(left_out))
    if difference > _tolerance(model.dtype):
        raise OptionError("folding", f"exact within {_tolerance(model.dtype):.0e}", str(parity))
    return Folded(view, parity)


def parity(model: Model, view: Model) -> float:
    """The largest difference of log-probabilities over a few random tokens, in nats."""
    return _difference(model, view)[0]


def _tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-8, torch.float32: TOLERANCE}.get(dtype, 0.5)


def _difference(model: Model, view: Model) -> tuple[float, int]:
    draws = torch.Generator().manual_seed(0)
    shape = (2, min(16, model.sizes.n_ctx))
    batch = batch_of(model, torch.randint(0, model.sizes.d_vocab, shape, generator=draws))

    def said(one: Model) -> Logits:
        resid = one.layers(one.embed(batch, UNTAPPED), batch, UNTAPPED)
        return one.unembed(resid, UNTAPPED).double().log_softmax(-1)

    with torch.no_grad():
        return float((said(model) - said(view)).abs().max()), shape[0] * shape[1]


def _fold_norms(stack: Stack) -> str | None:
    if _has_experts(stack):
        return "a router and experts read the norm"
    for layer, block in enumerate(blocks_of(stack)):
        at, attn = in_block(layer), block.attn
        for linear in (attn.q, attn.k, attn.v):
            put(linear, *_read(linear.weight, bias_of(linear), block.ln1))
        attn.bias = bias_of(attn.q) is not None
        block.ln1 = _plain(block.ln1, at, "ln1")
        _fold_mlp(block, at)
        block.ln2 = _plain(block.ln2, at, "ln2")
    words = words_of(stack)
    weight, bias = _read(words.weight, words.bias, stack.ln_final)
    if weight is not words.weight:
        words.weight, stack.tied = frozen(weight), False
    if bias is not None:
        words.bias = frozen(bias)
    stack.ln_final = _plain(stack.ln_final, outside_blocks, "ln_final")
    return None


def _fold_mlp(block: PreNormBlock, at: At) -> None:
    for linear in _inputs(block):
        put(linear, *_read(linear.weight, bias_of(linear), block.ln2))
    match block.mlp:
        case MLP() as mlp if mlp.ln is not None:
            put(mlp.down, *_read(mlp.down.weight, bias_of(mlp.down), mlp.ln))
            mlp.ln = _plain(mlp.ln, at, "mlp.ln")
        case _:
            pass


def _inputs(block: PreNormBlock) -> tuple[nn.Linear, ...]:
    match block.mlp:
        case GatedMLP() as mlp:
            return (mlp.gate, mlp.up)
        case MLP() as mlp:
            return (mlp.up,)
        case _:
            return ()


def _read(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor | None]:
    """Weights (out, d_model) that read the plain norm as these read the norm with its weights."""
    match norm:
        case LayerNorm():
            shift = weight @ norm.bias
            scaled = weight * norm.weight
            centred = scaled - scaled.mean(1, keepdim=True)
            return centred, shift if bias is None else bias + shift
        case UnbiasedLayerNorm():
            scaled = weight * norm.weight
            return scaled - scaled.mean(1, keepdim=True), bias
        case RMSNorm():
            return weight * norm.weight, bias
        case ShiftedRMSNorm():
            return weight * (1 + norm.weight), bias
        case _:
            return weight, bias


def _plain(norm: Norm, at: At, name: str) -> Norm:
    match norm:
        case LayerNorm() | UnbiasedLayerNorm():
            return PlainLayerNorm(norm.eps, at, name)
        case RMSNorm() | ShiftedRMSNorm():
            return PlainRMSNorm(norm.eps, at, name)
        case _:
            return norm


def _center_writers(stack: Stack) -> str | None:
    blocks = blocks_of(stack)
    if any(isinstance(block, SandwichBlock) for block in blocks):
        return "a norm follows what is written"
    if _has_experts(stack):
        return "experts write"
    norms = [stack.ln_final, *(block.ln1 for block in blocks)]
    norms += [block.ln2 for block in blocks if block.mlp is not None]
    if not all(isinstance(norm, LayerNorm | PlainLayerNorm | UnbiasedLayerNorm) for norm in norms):
        return "only a LayerNorm takes no notice of the mean"
    embed = stack.embed
    embed.tokens = frozen(embed.tokens - embed.tokens.mean(1, keepdim=True))
    stack.tied = False
    if embed.positions is not None:
        embed.positions = frozen(embed.positions - embed.positions.mean(1, keepdim=True))
    for block in blocks:
        for linear in _writers(block):
            bias = bias_of(linear)
            centred = None if bias is None else bias - bias.mean()
            put(linear, linear.weight - linear.weight.mean(0, keepdim=True), centred)
    return None


def _has_experts(stack: Stack) -> bool:
    return any(isinstance(block.mlp, Experts) for block in blocks_of(stack))


def _writers(block: PreNormBlock) -> tuple[nn.Linear, ...]:
    match block.mlp:
        case MLP() | GatedMLP() as mlp:
            return (block.attn.o, mlp.down)
        case _:
            return (block.attn.o,)


def _center_unembed(stack: Stack) -> str | None:
    unembed = words_of(stack)
    if unembed.cap is not None:
        return "a cap of the logits takes notice of their mean"
    unembed.weight = frozen(unembed.weight - unembed.weight.mean(0, keepdim=True))
    stack.tied = False
    if unembed.bias is not None:
        unembed.bias = frozen(unembed.bias - unembed.bias.mean())
    return None


def _fold_value_biases(stack: Stack) -> str | None:
    if any(b.attn.clip or b.attn.sinks is not None for b in blocks_of(stack)):
        return "values are clipped, or patterns do not sum to 1"
    for block in blocks_of(stack):
        attn = block.attn
        value = bias_of(attn.v)
        if value is None:
            continue
        by_head = rearrange(attn.o.weight, "d_model (head d) -> head d d_model", d=attn.d_head)
        each = rearrange(value, "(head d) -> head d", d=attn.d_head)
        each = each.repeat_interleave(attn.n_heads // attn.n_groups, 0)
        written = einsum(each, by_head, "head d, head d d_model -> d_model")
        old = bias_of(attn.o)
        put(attn.o, attn.o.weight, written if old is None else old + written)
        attn.out_bias = True
        put(attn.v, attn.v.weight, torch.zeros_like(value))
    return None


STEPS = {
    "fold_ln": _fold_norms,
    "center_writing_weights": _center_writers,
    "center_unembed": _center_unembed,
    "fold_value_biases": _fold_value_biases,
    "refactor_factored_attn_matrices": refactor,
}
