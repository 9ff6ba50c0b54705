"""A run of which every site can be read: its time beside a plain forward, and what it keeps.

Ours keeps the stream before each block, and makes the rest when it is read; `run_with_cache` keeps
every activation. So there are two rows for each shape: one in which nothing is read afterwards, and
one in which the attention patterns of all layers are. The memory is that of the distinct tensors
which the trace, or the cache, and the logits hold when the run is over.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from benchmarks.forward import SHAPES, plain
from benchmarks.harness import Case, each, relative
from benchmarks.peers import Peers, tokens

READ = ("attn.hook_pattern", "attn.hook_z", "hook_resid_post")
PATTERNS = "blocks.*.attn.hook_pattern"


def cases(peers: Peers) -> Iterator[Case]:
    """The rows."""
    for rows, columns in SHAPES:
        yield everything(peers, rows, columns, turns=5 if rows > 1 else 11)
    for rows, columns in SHAPES:
        yield patterns(peers, rows, columns, turns=5 if rows > 1 else 11)


def everything(peers: Peers, rows: int, columns: int, *, turns: int) -> Case:
    """Logits, and every site to be read afterwards; transformers records nothing."""
    ids = tokens(rows, columns)
    names = [f"blocks.{peers.ours.sizes.n_layers // 2}.{name}" for name in READ]

    def ours() -> wb.Trace:
        return wb.run(peers.ours, ids, record="all")

    def worst(trace: wb.Trace, other: tuple[Tensor, Mapping[str, Tensor]]) -> float:
        logits, cache = other
        inner = (relative(trace[name], cache[name]) for name in names if name in cache)
        return max(relative(trace.logits, logits), *inner, 0.0)

    others = {
        "transformers, which records nothing": lambda: (plain(peers, ids), {}),
        "transformer-lens": lambda: bridge(peers, ids),
    }
    name = f'record="all" {rows} × {columns}'
    return Case(name, ours, others, each(worst), 1e-5, turns)


def patterns(peers: Peers, rows: int, columns: int, *, turns: int) -> Case:
    """The same, and the patterns of all layers read from it: ours runs each block again."""
    ids, n_layers = tokens(rows, columns), peers.ours.sizes.n_layers
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(n_layers)]

    def ours() -> Sequence[Tensor]:
        return list(wb.run(peers.ours, ids, record="all").read(PATTERNS).values())

    def theirs() -> Sequence[Tensor]:
        _, cache = bridge(peers, ids)
        return [cache[name] for name in names]

    def worst(mine: Sequence[Tensor], other: Sequence[Tensor]) -> float:
        return max(relative(a, b) for a, b in zip(mine, other, strict=True))

    name = f'record="all", all patterns read, {rows} × {columns}'
    return Case(name, ours, {"transformer-lens": theirs}, each(worst), 1e-5, turns)


def bridge(peers: Peers, ids: Tensor) -> tuple[Tensor, Any]:
    """Logits, and TransformerLens's cache of everything."""
    with torch.inference_mode():
        return peers.bridge.run_with_cache(ids, use_cache=False)


def kept(peers: Peers) -> Iterator[str]:
    """What either keeps, for each shape."""
    for rows, columns in SHAPES:
        ids = tokens(rows, columns)
        trace = wb.run(peers.ours, ids, record="all")
        logits, cache = bridge(peers, ids)
        theirs: Mapping[str, Tensor] = cache.cache_dict
        ours, size = (
            _held(trace.activations.values(), trace.logits),
            _held(theirs.values(), logits),
        )
        yield (
            f'Kept by record="all" {rows} × {columns}: {ours / 2**20:.1f} MiB; by '
            f"TransformerLens' full cache {size / 2**20:.1f} MiB: 1/{size / ours:.1f} (logits "
            "counted in neither)."
        )


def _held(values: Iterable[Tensor], logits: Tensor) -> int:
    """Bytes of distinct memory, without that of the logits."""
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in values}
    storages.pop(logits.untyped_storage().data_ptr(), None)
    return sum(storages.values())
