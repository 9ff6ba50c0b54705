"""Weights into a model by their classic names, in any layout of `layouts`.

Notable: everything is checked before anything is put in its place, so a dict that does not fit
leaves the model as it was.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.compat.transformer_lens.layouts import by_block
from workbench.compat.transformer_lens.native import native, native_names
from workbench.compat.transformer_lens.places import Shown
from workbench.compat.transformer_lens.weights import ClassicWeights
from workbench.core.errors import WeightsError
from workbench.models.layers.context import At, in_block, outside_blocks
from workbench.models.layers.mlp import MLP, GatedMLP
from workbench.models.layers.norm import LayerNorm, Norm, PlainLayerNorm, PlainRMSNorm, RMSNorm
from workbench.models.transformer import Stack, Transformer
from workbench.models.views.stacks import blocks_of, frozen, like, shared, words_of


class Incompatible(NamedTuple):
    """What `load_state_dict(strict=False)` left as it was, and what it had no place for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def loaded(
    model: Transformer,
    given: Mapping[str, Tensor],
    *,
    strict: bool,
    in_place: bool,
    fill: bool = False,
) -> tuple[Transformer, Incompatible]:
    """The model with weights by their classic names; `fill` takes missing biases as 0, norms as 1.

    Raises:
        WeightsError: If names are missing or left over (`strict`), or if a weight has another
            shape, is given twice, or a constant is another model's.
    """
    expected = ClassicWeights(model.stack, Shown()).named()
    read = by_block(given, expected, model.stack)
    weights = {**(_defaults(expected) if fill else {}), **read.named}
    missing = [name for name in expected if name not in weights]
    left = [name for name in weights if name not in expected]
    problems = [f"missing: {name}" for name in missing if strict]
    problems += [f"unexpected: {name}" for name in left if strict]
    problems += [*read.problems, *_misshapen(weights, expected)]
    if problems:
        raise WeightsError("Weights do not fit the model:\n  " + "\n  ".join(problems))
    names = native_names(model.stack)
    own = {names[name]: native(name, weights[name]) for name in expected if name in weights}
    if in_place:
        _copy(model.stack, own)
        return model, Incompatible(missing, left)
    stack = shared(model.stack)
    for name, value in own.items():  # copied: what the caller does to the dict is the caller's
        kept = value.to(model.device, model.dtype, copy=True)
        _put(stack, name, kept.contiguous())
    stack.tied = False
    return like(model, stack, "loaded"), Incompatible(missing, left)


def _defaults(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What 2.x takes where a dict has none: biases 0, norm weights 1."""
    kinds = {name: name.rsplit(".", 1)[-1].lstrip("_") for name in expected}
    zeros = {n: torch.zeros_like(v) for n, v in expected.items() if kinds[n].startswith("b")}
    return zeros | {n: torch.ones_like(v) for n, v in expected.items() if kinds[n] == "w"}


def unfolded(model: Transformer, given: Mapping[str, Tensor]) -> Transformer:
    """The model with norms that have weights, where it has folded ones and weights are given.

    In 2.x a model may be configured as folded (LNPre) and be given weights that are yet to be.
    """
    stack = shared(model.stack)
    width = model.sizes.d_model
    for layer, block in enumerate(blocks_of(stack)):
        at, here = in_block(layer), f"blocks.{layer}"
        if f"{here}.ln1.w" in given:
            block.ln1 = _weighted(block.ln1, width, at, "ln1")
        if f"{here}.ln2.w" in given:
            block.ln2 = _weighted(block.ln2, width, at, "ln2")
        if f"{here}.mlp.ln.w" in given and isinstance(block.mlp, MLP) and block.mlp.ln is not None:
            block.mlp.ln = _weighted(block.mlp.ln, model.sizes.d_mlp, at, "mlp.ln")
    if "ln_final.w" in given:
        stack.ln_final = _weighted(stack.ln_final, width, outside_blocks, "ln_final")
    return like(model, stack, "")


def _weighted(norm: Norm, width: int, at: At, name: str) -> Norm:
    """A norm with weights, not yet set, in the place of one without."""
    match norm:
        case PlainLayerNorm():
            return LayerNorm(width, norm.eps, at, name)
        case PlainRMSNorm():
            return RMSNorm(width, norm.eps, at, name)
        case _:
            return norm


def _misshapen(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [
        f"misshapen: {name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in weights.items()
        if name in expected and value.shape != expected[name].shape
    ]


def _copy(stack: Stack, own: Mapping[str, Tensor]) -> None:
    places = dict(stack.named_parameters(remove_duplicate=False))
    lost = [name for name, value in own.items() if name not in places and bool(value.any())]
    if lost:
        raise WeightsError(f"The model has no place for {', '.join(lost)}.")
    with torch.no_grad():
        for name, value in own.items():
            if name in places:
                places[name].copy_(value)


def _put(stack: Stack, name: str, value: Tensor) -> None:
    """Puts one weight in its place, or makes that place for a bias that was none."""
    places = dict(stack.named_parameters(remove_duplicate=False))
    if name not in places and not bool(value.any()):
        return
    parent, _, leaf = name.rpartition(".")
    blocks = blocks_of(stack)
    if name == "unembed.bias":
        words_of(stack).bias = frozen(value)
        return
    layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
    block = None if layer is None else blocks[layer]
    if leaf == "inner" and block is not None and isinstance(block.mlp, GatedMLP):
        block.mlp.inner = frozen(value)
        return
    stack.get_submodule(parent).register_parameter(leaf, frozen(value))
    if block is not None and leaf == "bias" and ".attn." in name:
        block.attn.out_bias = block.attn.out_bias or parent.endswith(".o")
        if not parent.endswith(".o") and not block.attn.bias:
            for linear in (block.attn.q, block.attn.k, block.attn.v):
                if "bias" not in dict(linear.named_parameters()):
                    linear.bias = frozen(linear.weight.new_zeros(linear.weight.shape[0]))
            block.attn.bias = True
