"""Reading the stream at half depth of many texts of mixed length: the cost of making a data set.

The last token's residual of 256 texts. Once in batches of sixteen as the texts come, the same for
everybody, and once with what batches by length add: those that the workbench cuts, for everybody
again. `python -m benchmarks.capture` runs these two alone.
"""

import sys
from collections.abc import Callable, Iterator, Sequence

import torch

import workbench as wb
from benchmarks.harness import OURS, Case, markdown, measure
from benchmarks.peers import Peers, load
from workbench.core.buckets import batches
from workbench.core.data import Batch, batch_of

TEXTS, AT_ONCE, MAX_TOKENS = 256, 16, 2048
Capture = Callable[[Batch], torch.Tensor]


def captures(peers: Peers, turns: int = 3) -> Iterator[Case]:
    """The two rows."""
    ids = texts(TEXTS)
    as_they_come = [list(range(i, i + AT_ONCE)) for i in range(0, TEXTS, AT_ONCE)]
    yield capture(peers, "as they come", ids, as_they_come, turns)
    by_length = list(batches([len(row) for row in ids], range(TEXTS), MAX_TOKENS))
    yield capture(peers, "by length", ids, by_length, turns)


def texts(n: int) -> list[list[int]]:
    """Random ids; lengths log-normal as those of sentences, from 3 to 96 tokens, 17 on average."""
    draws = torch.Generator().manual_seed(0)
    lengths = (torch.randn(n, generator=draws) * 0.7 + 2.6).exp().round().clamp(3, 96)
    return [
        torch.randint(100, 49000, (int(length),), generator=draws).tolist() for length in lengths
    ]


def capture(
    peers: Peers, name: str, ids: list[list[int]], groups: Sequence[list[int]], turns: int
) -> Case:
    """The same rows from each library, batch by batch."""
    stop = peers.ours.sizes.n_layers // 2
    padded = [(group, batch_of(peers.ours, [ids[i] for i in group])) for group in groups]

    def ours() -> torch.Tensor:
        rows = torch.empty(len(ids), peers.ours.sizes.d_model)
        for group in groups:
            some = [ids[i] for i in group]
            read = wb.harvest(peers.ours, some, streams(stop), max_tokens=sys.maxsize)
            rows[group] = next(iter(read.rows.values()))
        return rows

    def rows_of(one: Capture) -> Callable[[], torch.Tensor]:
        def rows() -> torch.Tensor:
            found = torch.empty(len(ids), peers.ours.sizes.d_model)
            for group, batch in padded:
                found[group] = one(batch)[torch.arange(len(group)), batch.last]
            return found

        return rows

    peers_do = {
        "transformers": rows_of(from_transformers(peers, stop)),
        "transformer-lens": rows_of(from_bridge(peers, stop)),
    }

    def check() -> dict[str, float]:
        mine = ours()  # relative differences: the stream grows to thousands
        size = mine.abs().max()
        return {peer: float((mine - do()).abs().max() / size) for peer, do in peers_do.items()}

    pads = sum(batch.tokens.numel() for _, batch in padded) / sum(map(len, ids)) - 1
    title = f"capture {len(ids)} texts at half depth, batches {name} ({pads:.0%} pads)"
    return Case(title, {OURS: ours, **peers_do}, check, 1e-5, turns)


def streams(stop: int) -> str:
    """The stream after the block before `stop`."""
    return f"blocks.{stop - 1}.hook_resid_post"


def from_transformers(peers: Peers, stop: int) -> Capture:
    """All hidden states, of which one is kept: it has no other way but hooks."""

    def read(batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            made = peers.theirs(
                batch.tokens, attention_mask=mask(batch), use_cache=False, output_hidden_states=True
            )
        return made.hidden_states[stop]  # the first is the embedding

    return read


def from_bridge(peers: Peers, stop: int) -> Capture:
    """With a filter and a stop, as its documents advise."""

    def read(batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            _, cache = peers.bridge.run_with_cache(
                batch.tokens,
                attention_mask=mask(batch),
                names_filter=[streams(stop)],
                stop_at_layer=stop,
            )
        return cache[streams(stop)]

    return read


def mask(batch: Batch) -> torch.Tensor | None:
    """1 for tokens and 0 for pads, where there are any."""
    return None if batch.real is None else batch.real.long()


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    sys.stdout.write(markdown([measure(case) for case in captures(load(), asked)]) + "\n")
