"""A run of which every site can be read: its time beside a plain forward, and what it keeps.

Ours keeps the stream before each block; `run_with_cache` keeps every activation. The memory is
that of the distinct tensors which the trace, or the cache, and the logits hold when the run is
over. `python -m benchmarks.everything` runs these rows alone.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

import workbench as wb
from benchmarks.harness import OURS, Case, markdown, measure
from benchmarks.peers import Peers, load, tokens

SHAPES = ((1, 16), (1, 128), (8, 128))
READ = ("attn.hook_pattern", "attn.hook_z", "hook_resid_post")


def cases(peers: Peers) -> Iterator[Case]:
    """One row for each shape: ours records everything, transformers nothing."""
    for rows, columns in SHAPES:
        yield everything(peers, rows, columns)


def everything(peers: Peers, rows: int, columns: int) -> Case:
    """Logits, and every site to be read afterwards."""
    ids = tokens(rows, columns)
    middle = peers.ours.sizes.n_layers // 2

    def theirs() -> Tensor:
        with torch.inference_mode():
            return peers.theirs(ids, use_cache=False).logits

    def bridge() -> Tensor:
        with torch.inference_mode():
            logits, _ = peers.bridge.run_with_cache(ids)
        return logits

    def ours() -> Tensor:
        return wb.run(peers.ours, ids, record="all").logits

    def check() -> dict[str, float]:
        trace = wb.run(peers.ours, ids, record="all")
        with torch.inference_mode():
            logits, cache = peers.bridge.run_with_cache(ids)
        names = [f"blocks.{middle}.{name}" for name in READ]
        inner = max(_apart(trace[name], cache[name]) for name in names)
        return {
            "transformers": _apart(trace.logits, theirs()),
            "transformer-lens": max(_apart(trace.logits, logits), inner),
        }

    contestants = {OURS: ours, "transformers": theirs, "transformer-lens": bridge}
    turns = 5 if rows > 1 else 11
    return Case(f'record="all" {rows} x {columns}', contestants, check, 1e-5, turns)


@final
@dataclass(frozen=True)
class Kept:
    """Bytes that stay after one run of everything."""

    shape: tuple[int, int]
    ours: int
    bridge: int

    @override
    def __str__(self) -> str:
        rows, columns = self.shape
        return (
            f'Kept by record="all" {rows} x {columns}: {self.ours / 2**20:.1f} MiB; by '
            f"TransformerLens' full cache {self.bridge / 2**20:.1f} MiB: 1/"
            f"{self.bridge / self.ours:.1f} (logits counted in neither)."
        )


def kept(peers: Peers) -> Iterator[Kept]:
    """What either keeps, for each shape."""
    for rows, columns in SHAPES:
        ids = tokens(rows, columns)
        trace = wb.run(peers.ours, ids, record="all")
        with torch.inference_mode():
            logits, cache = peers.bridge.run_with_cache(ids)
        theirs: Mapping[str, Tensor] = cache.cache_dict
        size = _held(theirs.values(), logits)
        yield Kept((rows, columns), _held(trace.activations.values(), trace.logits), size)


def _held(values: Iterable[Tensor], logits: Tensor) -> int:
    """Bytes of distinct memory, without that of the logits."""
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in values}
    storages.pop(logits.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((one - other).abs().max() / one.abs().max())


if __name__ == "__main__":
    loaded = load()
    table = markdown([measure(case) for case in cases(loaded)])
    sys.stdout.write("\n".join([table, "", *map(str, kept(loaded))]) + "\n")
