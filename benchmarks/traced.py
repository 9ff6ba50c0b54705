"""What nnsight does in the cases, as its documents advise: one trace, and a stop where one helps.

In a file of its own, at the top level: it reads the source of each `with` block, and keeps what it
made of it by the block's place.
"""

from typing import Any

import torch
from torch import Tensor


def logits(model: Any, ids: Tensor) -> Tensor:
    """All logits of a batch."""
    with torch.inference_mode(), model.trace(ids, use_cache=False):
        found = model.lm_head.output.save()
    return found  # noqa: RET504 - the block is not run where it stands


def streams(model: Any, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """All logits, and the stream after every block."""
    with torch.inference_mode(), model.trace(ids, use_cache=False):
        kept: Any = [block.output for block in model.model.layers]
        kept = kept.save()
        found = model.lm_head.output.save()
    return found, kept


def stream_at(model: Any, layer: int, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The stream before a block, and nothing after it."""
    with (
        torch.inference_mode(),
        model.trace(ids, attention_mask=mask, use_cache=False) as tracer,
    ):
        found = model.model.layers[layer - 1].output.save()
        tracer.stop()
    return found
