"""The next-token loss by the classic rules."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.errors import ShapeError


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Float[Tensor, "batch pos d_vocab"]
    loss: Float[Tensor, "..."]


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None,
    *,
    per_token: bool,
) -> Float[Tensor, ""] | Float[Tensor, "batch pos_before_last"]:
    """Minus log p(next token), in nats: the mean over real pairs, or each, 0 where masked.

    A pair counts if both its token and its target are real.

    Raises:
        ShapeError: If logits and tokens do not match.
    """
    if logits.shape[:2] != tokens.shape:
        raise ShapeError(
            "tokens", f"{tuple(logits.shape[:2])} (batch pos)", f"{tuple(tokens.shape)}"
        )
    said = logits[:, :-1].log_softmax(-1)
    losses = -said.gather(-1, tokens[:, 1:, None].to(logits.device))[..., 0]
    if real is None:
        return losses if per_token else losses.mean()
    both = real[:, :-1] & real[:, 1:]
    losses = torch.where(both, losses, torch.zeros_like(losses))
    return losses if per_token else losses.sum() / both.sum()
