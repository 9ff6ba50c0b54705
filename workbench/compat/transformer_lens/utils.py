"""The classic `utils`: names and slices of activations, losses, masks, and small tensor helpers.

Notable: nothing here touches a global random generator, a tokenizer's settings, or its arguments.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.compat.transformer_lens._datasets import (
    keep_single_column,
    tokenize_and_concatenate,
)
from workbench.compat.transformer_lens._masks import get_attention_mask, get_offset_position_ids
from workbench.compat.transformer_lens._prompts import test_prompt
from workbench.compat.transformer_lens._sampling import sample_logits
from workbench.compat.transformer_lens._terminal import say
from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.compat.transformer_lens.names import get_act_name
from workbench.compat.transformer_lens.slices import Slice, SliceInput, to_numpy
from workbench.core.errors import ShapeError

__all__ = [
    "USE_DEFAULT_VALUE",
    "Slice",
    "SliceInput",
    "composition_scores",
    "gelu_fast",
    "gelu_new",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_device",
    "get_offset_position_ids",
    "is_lower_triangular",
    "is_square",
    "keep_single_column",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "print_gpu_mem",
    "remove_batch_dim",
    "sample_logits",
    "solu",
    "test_prompt",
    "to_numpy",
    "tokenize_and_concatenate",
    "transpose",
]

USE_DEFAULT_VALUE = None


def lm_cross_entropy_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"] | None = None,
    per_token: bool = False,  # noqa: FBT001, FBT002 - the classic signature
) -> Float[Tensor, ""] | Float[Tensor, "batch predicted"]:
    """−log p(next token), in nats: its mean, or one per predicted token.

    With a mask (1 is real) a term counts if its token and the next are real; others are 0 in the
    per-token losses.
    """
    losses = -logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    if attention_mask is None:
        return losses if per_token else losses.mean()
    counts = attention_mask[:, :-1].bool() & attention_mask[:, 1:].bool()
    losses = losses.where(counts, 0.0)
    return losses if per_token else losses.sum() / counts.sum()


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    per_token: bool = False,  # noqa: FBT001, FBT002 - the classic signature
) -> Float[Tensor, ""] | Bool[Tensor, "batch predicted"]:
    """The share of next tokens that are the likeliest, or whether each one is."""
    hits = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return hits if per_token else hits.sum() / hits.numel()


def composition_scores(
    left: FactoredMatrix,
    right: FactoredMatrix,
    broadcast_dims: bool = True,  # noqa: FBT001, FBT002 - the classic signature
) -> Float[Tensor, "..."]:
    """‖left right‖ / (‖left‖ ‖right‖), Frobenius norms, without forming a product.

    Every left with every right (left's leading dimensions, then right's), or, without
    `broadcast_dims`, one with one as torch broadcasts them.

    Raises:
        ShapeError: If a left has not as many columns as a right has rows.
    """
    if left.rdim != right.ldim:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise ShapeError("composition_scores", "left.rdim = right.ldim", shapes)
    a, b = left.collapse_l(), right.collapse_r()
    if broadcast_dims:
        a = a.reshape(*a.shape[:-2], *([1] * (b.ndim - 2)), *a.shape[-2:])
    norms = a.norm(dim=(-2, -1)) * b.norm(dim=(-2, -1))
    return (a @ b).norm(dim=(-2, -1)) / norms


def transpose(tensor: Float[Tensor, "... a b"]) -> Float[Tensor, "... b a"]:
    """The last two axes exchanged."""
    return tensor.mT


def get_corner(tensor: Tensor | FactoredMatrix, n: int = 3) -> Tensor:
    """The first `n` entries along every axis."""
    if isinstance(tensor, FactoredMatrix):
        return tensor.get_corner(n)
    return tensor[(slice(n),) * tensor.ndim]


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """Without its first axis, if that has length 1; else as it is."""
    return tensor.squeeze(0)


def is_square(x: Tensor) -> bool:
    """Whether it is a square matrix."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether it is a square matrix with nothing above its diagonal."""
    return is_square(x) and x.equal(x.tril())


def gelu_new(input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:  # noqa: A002
    """GELU by tanh, as GPT-2 has it."""
    return F.gelu(input, approximate="tanh")


def gelu_fast(input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:  # noqa: A002
    """The same function, which GPT-J's code writes in another order."""
    return F.gelu(input, approximate="tanh")


def solu(input: Float[Tensor, "... d_mlp"]) -> Float[Tensor, "... d_mlp"]:  # noqa: A002
    """The input times its softmax; the norm after it is the block's."""
    return input * input.softmax(-1)


def get_device() -> torch.device:
    """The first CUDA device, if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def print_gpu_mem(step_name: str = "") -> None:
    """Prints how much memory torch has allocated on the current CUDA device."""
    gib = torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    say(f"{step_name} ~ {gib:.2f} GiB allocated on GPU.")
