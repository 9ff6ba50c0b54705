"""Runs of many texts of mixed length: what length buckets add to one padded batch.

The next-token logits of 64 texts, padded to the longest by the peer and by the workbench, and by
the workbench in batches by length.
"""

from collections.abc import Iterator

import torch

import workbench as wb
from benchmarks.capture import mask, texts
from benchmarks.harness import Case, apart, each
from benchmarks.peers import Peers
from workbench.core.data import batch_of

TEXTS, MAX_TOKENS = 64, 2048
WHOLE = "workbench, one batch"


def cases(peers: Peers, turns: int = 3) -> Iterator[Case]:
    """The one row."""
    ids = texts(TEXTS)
    batch = batch_of(peers.ours, ids, padding_side="left")
    real = mask(batch)

    def bucketed() -> torch.Tensor:
        return wb.run(peers.ours, ids, max_tokens=MAX_TOKENS, positions="last").logits[:, 0]

    def padded() -> torch.Tensor:
        return wb.run(peers.ours, ids, positions="last").logits[:, 0]

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            made = peers.theirs(
                batch.tokens,
                attention_mask=real,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=1,
            )
        return made.logits[:, 0]

    pads = batch.tokens.numel() / sum(map(len, ids)) - 1
    title = f"next-token logits of {TEXTS} texts, by length or padded ({pads:.0%} pads)"
    others = {"transformers": theirs, WHOLE: padded}
    yield Case(title, bucketed, others, each(apart), 2e-4, turns)
