"""Steered generation: at all layers beside plain transformers, and eight strengths as one batch.

The peer steers as its users do, with a forward hook on every block that adds a vector, one
generation after another; we give each row of one batch its own plan.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch

import workbench as wb
from benchmarks.harness import OURS, Case
from benchmarks.peers import PROMPT, Peers

NEW_TOKENS = 64
STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
STREAMS = "blocks.*.hook_resid_post"


def cases(peers: Peers) -> Iterator[Case]:
    """The rows."""
    yield all_layers(peers)
    yield strengths(peers)


def all_layers(peers: Peers) -> Case:
    """64 tokens with a vector added after every block, beside unsteered ones of either."""
    ids, vector = prompt(peers), direction(peers)
    plan = [wb.Intervention(STREAMS, wb.ops.add(vector), strength=-1.0)]

    def ours() -> list[int]:
        return list(wb.generate(peers.ours, ids, plan=plan, max_new_tokens=NEW_TOKENS).tokens[0])

    def unsteered() -> list[int]:
        return list(wb.generate(peers.ours, ids, max_new_tokens=NEW_TOKENS).tokens[0])

    def theirs() -> list[int]:
        return generate(peers, ids)

    def check() -> dict[str, float]:
        steered = ours()
        short = NEW_TOKENS - len(steered)  # which would be no fair race
        same = float(steered != hooked(peers, ids, vector, -1.0))
        return {
            "workbench, unsteered": float(unsteered() != theirs()),
            "transformers, unsteered": same + short,
        }

    peers_do = {"workbench, unsteered": unsteered, "transformers, unsteered": theirs}
    return Case(
        f"generate {NEW_TOKENS}, steered at all layers", {OURS: ours, **peers_do}, check, 0, 3
    )


def strengths(peers: Peers) -> Case:
    """Eight strengths of one vector at every block, 64 tokens each."""
    ids, vector = prompt(peers), direction(peers)
    plans = [[wb.Intervention(STREAMS, wb.ops.add(vector), strength=s)] for s in STRENGTHS]
    rows = ids.repeat(len(STRENGTHS), 1)

    def ours() -> list[list[int]]:
        made = wb.generate(peers.ours, rows, plans=plans, max_new_tokens=NEW_TOKENS)
        return list(map(list, made.tokens))

    def theirs() -> list[list[int]]:
        return [hooked(peers, ids, vector, strength) for strength in STRENGTHS]

    def check() -> dict[str, float]:
        return {"transformers, hooks": float(ours() != theirs())}

    contestants = {OURS: ours, "transformers, hooks": theirs}
    return Case(f"{len(STRENGTHS)} strengths as one batch", contestants, check, 0, 1)


def prompt(peers: Peers) -> torch.Tensor:
    """The prompt of the other generations."""
    assert peers.ours.tokenizer is not None
    return torch.tensor([peers.ours.tokenizer.encode(PROMPT)])


def direction(peers: Peers) -> torch.Tensor:
    """A vector short enough that the text goes on, for 64 tokens and without an end."""
    draws = torch.Generator().manual_seed(0)
    return 0.02 * torch.randn(peers.ours.sizes.d_model, generator=draws)


def generate(peers: Peers, ids: torch.Tensor, *, least: int = NEW_TOKENS) -> list[int]:
    """The peer's greedy tokens, `least` of them before it may end."""
    made = peers.theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=least,
        do_sample=False,
        pad_token_id=0,
    )
    return made[0, ids.shape[1] :].tolist()


def hooked(peers: Peers, ids: torch.Tensor, vector: torch.Tensor, strength: float) -> list[int]:
    """The peer's greedy tokens with a hook on every block."""
    added = strength * vector

    def steer(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + added, *output[1:])
        return output + added

    blocks: Sequence[Any] = peers.theirs.model.layers
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(steer).remove)
        return generate(peers, ids, least=0)  # either may end a text, as its steering has it
