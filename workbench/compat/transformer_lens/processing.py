"""What changes the weights a facade shows: views, other weights, other places; and sums of them."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.compat.transformer_lens.utils import composition_scores
from workbench.compat.transformer_lens.weights import (
    BlockWeights,
    ClassicWeights,
    native,
    native_names,
)
from workbench.core.errors import OptionError, WeightsError
from workbench.models.layers.mlp import GatedMLP
from workbench.models.transformer import Stack, Transformer
from workbench.models.views.folded import Folding, Parity, fold
from workbench.models.views.stacks import blocks_of, converted, frozen, like, shared

BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")
Scores = Float[Tensor, "layer head other_layer other_head"]


def processed(model: Transformer, flags: Folding) -> tuple[Transformer, Parity | None]:
    """A view with folded weights and its parity; the model itself if nothing is to be done."""
    if not any(vars(flags).values()):
        return model, None
    made = fold(model, flags)
    return made.model, made.parity


def wrapped(model: Transformer, stack: Stack) -> Transformer:
    """A model of another stack, named alike."""
    return like(model, stack, "")


def moved(
    model: Transformer, where: torch.device | torch.dtype | str, *, in_place: bool
) -> Transformer:
    """The model elsewhere, or in another dtype; itself where it is so already."""
    dtype = where if isinstance(where, torch.dtype) else model.dtype
    device = model.device if isinstance(where, torch.dtype) else torch.device(where)
    if dtype == model.dtype and torch.empty(0, device=device).device == model.device:
        return model
    if in_place:
        model.stack.to(device=device, dtype=dtype)
        return model
    return like(model, converted(model.stack, lambda w: w.to(device=device, dtype=dtype)), "")


def completed(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the missing ones added: biases 0, norm weights 1."""
    filled = dict(given)
    for name, value in own.items():
        kind = name.rsplit(".", 1)[-1].lstrip("_")
        if name not in filled and kind[:1] == "b":
            filled[name] = torch.zeros_like(value)
        elif name not in filled and kind == "w":
            filled[name] = torch.ones_like(value)
    return filled


def loaded(
    model: Transformer, given: Mapping[str, Tensor], *, strict: bool, in_place: bool
) -> Transformer:
    """The model with weights by their classic names.

    Raises:
        WeightsError: If names are missing or left over (`strict`), or shapes differ.
    """
    expected = ClassicWeights(model.stack, keep=False).named()
    weights = {name: value for name, value in given.items() if not name.endswith(BUFFERS)}
    problems = [f"missing: {name}" for name in expected if strict and name not in weights]
    problems += [f"unexpected: {name}" for name in weights if strict and name not in expected]
    problems += [
        f"misshapen: {name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in weights.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if problems:
        raise WeightsError("Weights do not fit the model:\n  " + "\n  ".join(problems))
    names = native_names(model.stack)
    own = {names[name]: native(name, weights[name]) for name in expected if name in weights}
    if in_place:
        _copy(model.stack, own)
        return model
    stack = shared(model.stack)
    for name, value in own.items():
        _put(stack, name, value.to(device=model.device, dtype=model.dtype))
    stack.tied = False
    return like(model, stack, "loaded")


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
        stack.unembed.bias = frozen(value)
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


def accumulated_bias(
    blocks: Sequence[BlockWeights], layer: int, d_model: int, *, mlp_input: bool, neurons: bool
) -> Float[Tensor, " d_model"]:
    """The sum of all biases written before a layer.

    Raises:
        OptionError: If there is no such layer.
    """
    if not 0 <= layer <= len(blocks) - mlp_input:
        raise OptionError("layer", f"within 0…{len(blocks) - mlp_input}", layer)
    total = blocks[0].attn.b_O.new_zeros(d_model)
    for block in blocks[:layer]:
        total = total + block.attn.b_O
        total = total + block.mlp.b_out if neurons else total
    return total + blocks[layer].attn.b_O if mlp_input else total


def composition(qk: FactoredMatrix, ov: FactoredMatrix, mode: str) -> Scores:
    """||OV₁ R||_F / (||OV₁||_F ||R||_F), with R = QK₂, QK₂ᵀ or OV₂; 0 unless layer₁ < layer₂.

    Raises:
        OptionError: If the mode is none of the three.
    """
    rights = {"Q": qk, "K": qk.T, "V": ov}
    if mode not in rights:
        raise OptionError("mode", "'Q', 'K' or 'V'", mode)
    shaped = composition_scores(ov, rights[mode])
    layers = shaped.shape[0]
    order = torch.arange(layers, device=shaped.device)
    later = order[:, None, None, None] < order[None, None, :, None]
    return torch.where(later, shaped, torch.zeros_like(shaped))


def gate_of(block: BlockWeights) -> Tensor:
    """W_gate of a gated block.

    Raises:
        OptionError: If it has none.
    """
    gate = block.mlp.W_gate
    if gate is None:
        raise OptionError("W_gate", "read from a gated model", None)
    return gate


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype by its name.

    Raises:
        OptionError: If it is no floating-point dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float64": torch.float64, "float32": torch.float32}
    known |= {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise OptionError("dtype", f"one of {', '.join(map(repr, known))}", dtype)
    return known[dtype]


def refuse_checkpoints(index: int | None, value: int | None, n_devices: int) -> None:
    """Refuses what is not built here.

    Raises:
        OptionError: If a training checkpoint or several devices are asked for.
    """
    for name, given in (("checkpoint_index", index), ("checkpoint_value", value)):
        if given is not None:
            raise OptionError(name, "None: give the checkpoint's own folder as model_name", given)
    if n_devices != 1:
        raise OptionError("n_devices", "1", n_devices)


def refuse_shortformer(positions: Tensor | None) -> None:
    """Refuses what is not built here.

    Raises:
        OptionError: If shortformer positions are given.
    """
    if positions is not None:
        raise OptionError("shortformer_pos_embed", "None: no shortformer is built here", "a tensor")
