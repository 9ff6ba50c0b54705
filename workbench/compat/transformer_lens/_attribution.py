"""Components of the stream, through a norm and onto the directions of tokens.

Notable: a *frozen* norm divides by the scale of the recorded run, so it is linear and shares add
up; a *recomputed* one gives every component statistics of its own, and they do not.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.compat.transformer_lens._protocols import CachedModel
from workbench.compat.transformer_lens.slices import Slice
from workbench.core.errors import ShapeError
from workbench.core.options import index

Stack = Float[Tensor, "component ... d_model"]
Chosen = str | int | Tensor


def scale_of(model: CachedModel, layer: int, *, mlp_input: bool) -> str:
    """The site of the scale with which the stream enters a layer, or the unembedding."""
    if layer == model.cfg.n_layers:
        return "ln_final.hook_scale"
    return f"blocks.{layer}.ln{2 if mlp_input else 1}.hook_scale"


def frozen_norm(model: CachedModel, stack: Stack, scale: Tensor, layer: int) -> Stack:
    """Each component, centred where the norm before `layer` centres, over a recorded scale."""
    rms_at_last = model.cfg.final_rms and layer == model.cfg.n_layers
    if model.cfg.normalization_type in ("LN", "LNPre") and not rms_at_last:
        stack = stack - stack.mean(-1, keepdim=True)
    return stack / scale


def recomputed_norm(model: CachedModel, stack: Stack) -> Stack:
    """Each component through the final norm by itself."""
    return model.ln_final(stack)


def logit_attributions(  # noqa: PLR0913 - a stack, two kinds of tokens, and its two slices
    model: CachedModel,
    stack: Stack,
    tokens: Chosen,
    incorrect: Chosen | None,
    pos: Slice,
    rows: Slice,
    *,
    batched: bool,
) -> Float[Tensor, "component ..."]:
    """Each normed component along W_U[:, token], less along W_U[:, incorrect token].

    Raises:
        ShapeError: If the tokens differ in shape, or fit neither the rows nor the positions.
    """
    ids = _ids(model, tokens)
    directions = model.W_U.mT[ids.to(model.W_U.device)]
    if incorrect is not None:
        wrong = _ids(model, incorrect)
        if wrong.shape != ids.shape:
            alike = f"incorrect_tokens of the shape of tokens, {tuple(ids.shape)}"
            raise ShapeError("logit_attrs", alike, f"{tuple(wrong.shape)}")
        directions = directions - model.W_U.mT[wrong.to(model.W_U.device)]
    slices = [rows, pos] if batched else [pos]
    return (stack * _fitted(directions, stack, slices)).sum(-1)


def _ids(model: CachedModel, tokens: Chosen) -> Tensor:
    if isinstance(tokens, str):
        return torch.tensor(model.to_single_token(tokens))
    return tokens if isinstance(tokens, Tensor) else torch.tensor(index("tokens", tokens))


def _fitted(directions: Tensor, stack: Stack, slices: list[Slice]) -> Tensor:
    """Directions of tokens as the stack has them: rows first, each for all of its positions.

    Raises:
        ShapeError: If they do not fit.
    """
    given = tuple(directions.shape[:-1])
    if len(given) > len(slices):
        raise ShapeError("logit_attrs", f"tokens of at most {len(slices)} axes", f"{given}")
    inner = list(stack.shape[1:-1])
    axis = 0
    for length, part in zip(given, slices, strict=False):
        if part.mode == "int":
            directions = (part if length > 1 else Slice(0)).apply(directions, axis)
            continue
        expected = inner[axis] if axis < len(inner) else 1
        if length not in (1, expected):
            directions = part.apply(directions, axis)
        if directions.shape[axis] not in (1, expected):
            fits = f"tokens that fit a stack of {tuple(inner)}"
            raise ShapeError("logit_attrs", fits, f"{given}")
        axis += 1
    missing = len(inner) - axis if axis else 0
    return directions.reshape(*directions.shape[:-1], *([1] * missing), directions.shape[-1])
