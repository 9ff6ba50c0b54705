"""What a facade does with its weights: views of them, other places, and sums of them."""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.compat.transformer_lens.weights import BlockWeights
from workbench.core.errors import OptionError
from workbench.models.transformer import Transformer
from workbench.models.views.folded import Folding, Parity, fold
from workbench.models.views.stacks import converted, like

Scores = Float[Tensor, "layer head other_layer other_head"]


def processed(model: Transformer, flags: Folding) -> tuple[Transformer, Parity | None]:
    """A view with folded weights and its parity; the model itself if nothing is to be done."""
    if not any(vars(flags).values()):
        return model, None
    made = fold(model, flags)
    return made.model, made.parity


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


def accumulated_bias(
    blocks: Sequence[BlockWeights], layer: int, d_model: int, *, mlp_input: bool, neurons: bool
) -> Float[Tensor, " d_model"]:
    """The sum of all biases written before a layer.

    Raises:
        OptionError: If there is no such layer, or a norm follows what is written.
    """
    if not 0 <= layer <= len(blocks) - mlp_input:
        raise OptionError("layer", f"within 0…{len(blocks) - mlp_input}", layer)
    if blocks[0].ln1_post.w is not None:
        allowed = "one whose heads and neurons write to the stream as they are"
        raise OptionError("model", allowed, "one where a norm follows them")
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
    left, right = ov.collapse_l(), rights[mode].collapse_r()
    heads = left.shape[:2]
    products = left.new_zeros(*heads, *heads)
    for layer, head in product(range(heads[0]), range(heads[1])):  # all at once would take 20 GB
        after = left[layer, head] @ right[layer + 1 :]
        products[layer, head, layer + 1 :] = after.norm(dim=(-2, -1))
    return products / (left.norm(dim=(-2, -1))[:, :, None, None] * right.norm(dim=(-2, -1)))


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
