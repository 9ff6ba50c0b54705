"""Forwards: plain ones, and those that record every residual stream."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import workbench as wb
from benchmarks import traced
from benchmarks.harness import Case, apart, each, relative
from benchmarks.peers import Peers, tokens

SHAPES = ((1, 16), (1, 128), (8, 128))
STREAMS = "blocks.*.hook_resid_post"


def cases(peers: Peers) -> Iterator[Case]:
    """The rows."""
    for rows, columns in SHAPES:
        yield forward(peers, rows, columns, turns=5 if rows > 1 else 11)
    for rows, columns in SHAPES:
        yield record(peers, rows, columns, turns=5 if rows > 1 else 11)


def plain(peers: Peers, ids: Tensor) -> Tensor:
    """All logits by transformers, which neither records nor caches."""
    with torch.inference_mode():
        return peers.theirs(ids, use_cache=False).logits


def forward(peers: Peers, rows: int, columns: int, *, turns: int) -> Case:
    """All logits of a batch."""
    ids = tokens(rows, columns)

    def bridge() -> Tensor:
        with torch.inference_mode():
            return peers.bridge(ids, use_cache=False)

    def ours() -> Tensor:
        return wb.run(peers.ours, ids).logits

    others = {
        "transformers": lambda: plain(peers, ids),
        "transformer-lens": bridge,
        **peers.traced(traced.logits, ids),
    }
    return Case(f"forward {rows} × {columns}", ours, others, each(apart), 2e-4, turns)


Recorded = tuple[Tensor, Sequence[Tensor]]  # logits, and the streams after the blocks


def record(peers: Peers, rows: int, columns: int, *, turns: int) -> Case:
    """All logits, and the residual stream after every block."""
    ids, n_layers = tokens(rows, columns), peers.ours.sizes.n_layers
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers)]

    def hidden() -> Recorded:
        with torch.inference_mode():
            made = peers.theirs(ids, use_cache=False, output_hidden_states=True)
        return made.logits, made.hidden_states[1:-1]  # its last one is after the final norm

    def bridge() -> Recorded:
        with torch.inference_mode():
            logits, cache = peers.bridge.run_with_cache(ids, names_filter=names, use_cache=False)
        return logits, [cache[name] for name in names]

    def ours() -> Recorded:
        trace = wb.run(peers.ours, ids, record=STREAMS)
        return trace.logits, [trace[name] for name in names]

    others = {
        "transformers, which records nothing": lambda: (plain(peers, ids), ()),
        "transformers": hidden,
        "transformer-lens": bridge,
        **peers.traced(traced.streams, ids),
    }
    name = f"record all streams {rows} × {columns}"
    return Case(name, ours, others, each(_worst), 1e-5, turns)


def _worst(mine: Recorded, others: Recorded) -> float:
    """Of the logits and of every stream that the peer gives."""
    streams = zip(mine[1], others[1], strict=False)  # none, all, or all but the last
    return max(relative(mine[0], others[0]), *(relative(a, b) for a, b in streams), 0.0)
