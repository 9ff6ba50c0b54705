"""The first rows: a forward, a run that records every residual stream, and 64 generated tokens."""

from collections.abc import Iterator

import torch

import workbench as wb
from benchmarks.capture import captures
from benchmarks.harness import OURS, Case
from benchmarks.many import many
from benchmarks.peers import PROMPT, Peers, tokens
from benchmarks.steered import cases as steered

SHAPES = ((1, 16), (1, 128), (8, 128))
STREAMS = "blocks.*.hook_resid_post"
NEW_TOKENS = 64


def cases(peers: Peers) -> Iterator[Case]:
    """Every row of the table."""
    for rows, columns in SHAPES:
        yield forward(peers, rows, columns)
    for rows, columns in SHAPES[:2]:
        yield record(peers, rows, columns)
    yield generate(peers)
    yield from steered(peers)
    yield from captures(peers)
    yield from many(peers)


def forward(peers: Peers, rows: int, columns: int) -> Case:
    """All logits of a batch."""
    ids = tokens(rows, columns)

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return peers.theirs(ids, use_cache=False).logits

    def bridge() -> torch.Tensor:
        with torch.inference_mode():
            return peers.bridge(ids)

    def ours() -> torch.Tensor:
        return wb.run(peers.ours, ids).logits

    peers_do = {"transformers": theirs, "transformer-lens": bridge}

    def check() -> dict[str, float]:
        mine = ours()
        return {name: float((mine - do()).abs().max()) for name, do in peers_do.items()}

    contestants = {OURS: ours, **peers_do}
    return Case(f"forward {rows} x {columns}", contestants, check, 2e-4, 5 if rows > 1 else 11)


def record(peers: Peers, rows: int, columns: int) -> Case:
    """All logits, and the residual stream after every block."""
    ids, n_layers = tokens(rows, columns), peers.ours.sizes.n_layers
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers)]

    def theirs() -> list[torch.Tensor]:
        with torch.inference_mode():
            hidden = peers.theirs(ids, use_cache=False, output_hidden_states=True).hidden_states
        return list(hidden[1:-1])  # its last one is after the final norm

    def bridge() -> list[torch.Tensor]:
        with torch.inference_mode():
            _, cache = peers.bridge.run_with_cache(ids, names_filter=names)
        return [cache[name] for name in names[:-1]]

    def ours() -> list[torch.Tensor]:
        trace = wb.run(peers.ours, ids, record=STREAMS)
        return [trace[name] for name in names[:-1]]

    peers_do = {"transformers": theirs, "transformer-lens": bridge}

    def check() -> dict[str, float]:
        mine = ours()  # relative differences: the stream grows to thousands
        return {
            name: max(
                float((a - b).abs().max() / a.abs().max()) for a, b in zip(mine, do(), strict=True)
            )
            for name, do in peers_do.items()
        }

    contestants = {OURS: ours, **peers_do}
    return Case(f"record all streams {rows} x {columns}", contestants, check, 1e-5, 7)


def generate(peers: Peers) -> Case:
    """Greedy tokens from a short prompt, with a key-value cache."""
    tokenizer = peers.ours.tokenizer
    assert tokenizer is not None
    ids = torch.tensor([tokenizer.encode(PROMPT)])

    def theirs() -> list[int]:
        made = peers.theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        return made[0, ids.shape[1] :].tolist()

    def bridge() -> list[int]:
        made = peers.bridge.generate(
            ids, max_new_tokens=NEW_TOKENS, do_sample=False, stop_at_eos=False, verbose=False
        )
        return made[0, ids.shape[1] :].tolist()

    def ours() -> list[int]:
        return list(wb.generate(peers.ours, ids, max_new_tokens=NEW_TOKENS).tokens[0])

    peers_do = {"transformers": theirs, "transformer-lens": bridge}

    def check() -> dict[str, float]:
        mine = ours()
        return {
            name: float(sum(a != b for a, b in zip(mine, do(), strict=True)))
            for name, do in peers_do.items()
        }

    contestants = {OURS: ours, **peers_do}
    return Case(f"generate {NEW_TOKENS} tokens, cached", contestants, check, 0, 3)
