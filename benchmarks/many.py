"""Runs of many texts of mixed length: what length buckets add to one padded batch.

The next-token logits of 64 texts, padded to the longest by the peer and by the workbench, and by
the workbench in batches by length. `python -m benchmarks.many` runs it alone.
"""

import sys
from collections.abc import Iterator

import torch

import workbench as wb
from benchmarks.capture import mask, texts
from benchmarks.harness import OURS, Case, markdown, measure
from benchmarks.peers import Peers, load
from workbench.core.data import batch_of

TEXTS, MAX_TOKENS = 64, 2048
WHOLE = "workbench, one batch"


def many(peers: Peers, turns: int = 3) -> Iterator[Case]:
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

    def check() -> dict[str, float]:
        mine = bucketed()
        others = {"transformers": theirs(), WHOLE: padded()}
        return {name: float((mine - other).abs().max()) for name, other in others.items()}

    pads = batch.tokens.numel() / sum(map(len, ids)) - 1
    title = f"next-token logits of {TEXTS} texts, by length or padded ({pads:.0%} pads)"
    yield Case(title, {OURS: bucketed, "transformers": theirs, WHOLE: padded}, check, 2e-4, turns)


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    sys.stdout.write(markdown([measure(case) for case in many(load(), asked)]) + "\n")
