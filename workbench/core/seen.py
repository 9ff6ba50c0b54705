"""Attention masks by query and key: who may see whom, beside causality and pads.

Notable: a mask only takes away. In a causal model nobody looks ahead, whatever the mask says, and
nobody sees a pad. A token that is left with no key to see reads nothing: its pattern is 0, and so
is what its head writes.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.core.errors import OptionError, ShapeError

Seen = Bool[Tensor, "mask group query key"]  # mask: 1 or each row; group: 1 or each head


def seen_of(mask: Tensor, rows: int, heads: int, width: int) -> Seen | None:
    """A mask (batch|1 head|1 query key) over the padded columns; None if it hides nothing.

    True where a query may see a key; or, in floating point, 0 there and -inf (or the lowest number
    of its dtype) elsewhere, as what is added to the scores.

    Raises:
        ShapeError: If it does not fit the batch.
        OptionError: If it is neither.
    """
    expected = f"({rows} or 1, {heads} or 1, {width}, {width}) (batch head query key)"
    sizes = tuple(mask.shape)
    if sizes[0] not in (1, rows) or sizes[1] not in (1, heads) or sizes[2:] != (width, width):
        raise ShapeError("attention_mask", expected, str(sizes))
    seen = _read(mask)
    return None if bool(seen.all()) else seen


def _read(mask: Tensor) -> Seen:
    if mask.dtype == torch.bool:
        return mask.clone()  # the caller may change its own
    allowed = "by query and key, True where a key is seen, or 0 there and -inf elsewhere"
    if not mask.is_floating_point():
        raise OptionError("attention_mask", allowed, mask.dtype)
    seen, hidden = mask == 0, mask <= torch.finfo(mask.dtype).min
    if not bool((seen | hidden).all()):
        raise OptionError("attention_mask", allowed, mask[~(seen | hidden)].unique().tolist())
    return seen
