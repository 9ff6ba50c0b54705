"""Reading the stream at half depth of many texts of mixed length: the cost of making a data set.

The last token's residual of 256 texts. Once in batches of sixteen as the texts come, the same for
everybody; and once with what batches by length add: those that the workbench cuts, for everybody
again, and ours as they come beside them. The peers' batches are padded before the clock starts,
ours after.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from benchmarks import traced
from benchmarks.harness import Case, each, relative
from benchmarks.peers import Peers
from workbench.core.buckets import batches
from workbench.core.data import Batch, batch_of

TEXTS, AT_ONCE, MAX_TOKENS = 256, 16, 2048
Groups = Sequence[list[int]]
Ids = list[list[int]]


def cases(peers: Peers) -> Iterator[Case]:
    """The two rows."""
    ids = texts(TEXTS)
    yield as_they_come(peers, ids, turns=3)
    yield by_length(peers, ids, turns=3)


def texts(n: int, longer: int = 1) -> Ids:
    """Random ids; lengths log-normal as those of sentences, from 3 to 96 tokens, 17 on average."""
    draws = torch.Generator().manual_seed(0)
    lengths = (torch.randn(n, generator=draws) * 0.7 + 2.6).exp().round().clamp(3, 96) * longer
    return [
        torch.randint(100, 49000, (int(length),), generator=draws).tolist() for length in lengths
    ]


def as_they_come(peers: Peers, ids: Ids, *, turns: int) -> Case:
    """The same batches of sixteen for everybody."""
    groups = [list(range(i, min(i + AT_ONCE, len(ids)))) for i in range(0, len(ids), AT_ONCE)]
    mean = sum(map(len, ids)) / len(ids)
    title = f"capture {len(ids)} texts of {mean:.0f} tokens at half depth, batches as they come"
    others = readers(peers, ids, groups)
    name = f"{title} ({pads(ids, groups):.0%} pads)"
    return Case(name, lambda: harvested(peers, ids, groups), others, each(relative), 1e-5, turns)


def by_length(peers: Peers, ids: Ids, *, turns: int) -> Case:
    """Our batches for everybody."""
    come = [list(range(i, min(i + AT_ONCE, len(ids)))) for i in range(0, len(ids), AT_ONCE)]
    groups = list(batches([len(row) for row in ids], range(len(ids)), MAX_TOKENS))

    def ours() -> Tensor:
        read = wb.harvest(peers.ours, ids, site(peers), max_tokens=MAX_TOKENS)
        return next(iter(read.rows.values()))

    others = {
        "workbench, as they come": lambda: harvested(peers, ids, come),
        **readers(peers, ids, groups),
    }
    name = f"capture {len(ids)} texts at half depth, batches by length"
    name = f"{name} ({pads(ids, groups):.0%} pads)"
    return Case(name, ours, others, each(relative), 1e-5, turns)


def half(peers: Peers) -> int:
    """The first block that need not run."""
    return peers.ours.sizes.n_layers // 2


def site(peers: Peers) -> str:
    """The stream after the block before it."""
    return f"blocks.{half(peers) - 1}.hook_resid_post"


def pads(ids: Ids, groups: Groups) -> float:
    """Pads per token."""
    computed = sum(len(group) * max(len(ids[i]) for i in group) for group in groups)
    return computed / sum(map(len, ids)) - 1


def harvested(peers: Peers, ids: Ids, groups: Groups) -> Tensor:
    """Ours, in given batches."""
    rows = torch.empty(len(ids), peers.ours.sizes.d_model)
    for group in groups:
        some = [ids[i] for i in group]
        read = wb.harvest(peers.ours, some, site(peers), max_tokens=sys.maxsize)
        rows[group] = next(iter(read.rows.values()))
    return rows


def readers(peers: Peers, ids: Ids, groups: Groups) -> dict[str, Callable[[], Tensor]]:
    """The peers', in the same batches."""
    padded = [(group, batch_of(peers.ours, [ids[i] for i in group])) for group in groups]

    def by(read: Callable[[Batch], Tensor]) -> Callable[[], Tensor]:
        def rows() -> Tensor:
            found = torch.empty(len(ids), peers.ours.sizes.d_model)
            for group, batch in padded:
                found[group] = read(batch)[torch.arange(len(group)), batch.last]
            return found

        return rows

    stop, traces = half(peers), peers.nnsight
    found = {
        "transformers": by(lambda batch: hidden(peers.theirs, batch, stop)),
        "transformers, without logits": by(lambda batch: hidden(peers.theirs.model, batch, stop)),
        "transformer-lens": by(lambda batch: bridged(peers, batch, stop)),
    }
    if traces is not None:
        found["nnsight"] = by(lambda b: traced.stream_at(traces, stop, b.tokens, mask(b)))
    return found


def hidden(model: Any, batch: Batch, layer: int) -> Tensor:
    """All hidden states, of which one is kept: transformers has no other way but hooks."""
    with torch.inference_mode():
        made = model(
            batch.tokens, attention_mask=mask(batch), use_cache=False, output_hidden_states=True
        )
    return made.hidden_states[layer]  # the first is the embedding


def bridged(peers: Peers, batch: Batch, stop: int) -> Tensor:
    """With a filter and a stop, as TransformerLens's documents advise."""
    with torch.inference_mode():
        _, cache = peers.bridge.run_with_cache(
            batch.tokens,
            attention_mask=mask(batch),
            names_filter=[site(peers)],
            stop_at_layer=stop,
            use_cache=False,
        )
    return cache[site(peers)]


def mask(batch: Batch) -> Tensor | None:
    """1 for tokens and 0 for pads, where there are any."""
    return None if batch.real is None else batch.real.long()
