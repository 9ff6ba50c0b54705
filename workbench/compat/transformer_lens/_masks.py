"""Which tokens are real, and at which positions they stand.

Notable: only leading (left) or trailing (right) pad ids are pads; the same id within is a token.
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.core.errors import OptionError


@runtime_checkable
class PadsView(Protocol):
    """What of a tokenizer says where pads are."""

    @property
    def pad_token_id(self) -> int | None:
        """The id that pads."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text."""
        ...

    @property
    def padding_side(self) -> str:
        """Where it pads."""
        ...


def get_attention_mask(
    tokenizer: PadsView | None,
    tokens: Int[Tensor, "batch pos"],
    prepend_bos: bool,  # noqa: FBT001 - the classic signature
    *,
    padding_side: Literal["left", "right"] | None = None,
) -> Int[Tensor, "batch pos"]:
    """1 where a token is real, 0 where it is a pad.

    `padding_side` is the tokenizer's own if left out. Where the pad is also the beginning of a
    text, and one was put before it, the last of the leading pads is real.

    Raises:
        OptionError: If the side is neither "left" nor "right".
    """
    if tokenizer is None or tokenizer.pad_token_id is None:
        return torch.ones_like(tokens)
    side = padding_side or tokenizer.padding_side
    if side not in ("left", "right"):
        raise OptionError("padding_side", "'left' or 'right'", side)
    text = (tokens != tokenizer.pad_token_id).to(tokens.dtype)
    if side == "right":
        return text.flip(-1).cummax(-1).values.flip(-1)
    real = text.cummax(-1).values
    if prepend_bos and tokenizer.bos_token_id == tokenizer.pad_token_id:
        real = torch.cat([real[:, 1:], torch.ones_like(real[:, :1])], 1)
    return real


def get_offset_position_ids(
    past_kv_pos_offset: int, attention_mask: Int[Tensor, "batch all_pos"]
) -> Int[Tensor, "batch pos"]:
    """The positions of the tokens after the first `past_kv_pos_offset`; pads count for nothing."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)[:, past_kv_pos_offset:]
