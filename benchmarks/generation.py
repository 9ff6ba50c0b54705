"""Generated tokens: plain, steered at all layers, and eight strengths as one batch.

The peer steers as its users do, with a forward hook on every block that adds a vector: one
generation after another, and, which takes a hook that knows the rows, all strengths at once. We
give each row of one batch its own plan.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from benchmarks.harness import OURS, Case, Differences, Results, each, unlike
from benchmarks.peers import PROMPT, Peers

NEW_TOKENS = 64
STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
STREAMS = "blocks.*.hook_resid_post"
Rows = list[list[int]]


def cases(peers: Peers) -> Iterator[Case]:
    """The rows."""
    ids = prompt(peers)
    yield plain(peers, ids)
    yield steered(peers, ids, NEW_TOKENS, turns=5)
    yield strengths(peers, ids, STRENGTHS, NEW_TOKENS, turns=3)


def plain(peers: Peers, ids: Tensor) -> Case:
    """Greedy tokens from a short prompt, with a key-value cache."""

    def bridge() -> Rows:
        options: Any = {"do_sample": False, "stop_at_eos": False, "verbose": False}
        with torch.inference_mode():
            made = peers.bridge.generate(ids, max_new_tokens=NEW_TOKENS, **options)
        return made[:, ids.shape[1] :].tolist()

    def ours() -> Rows:
        return generate(peers, ids, NEW_TOKENS)

    others = {
        "transformers": lambda: theirs(peers, ids, NEW_TOKENS),
        "transformer-lens": bridge,
    }
    return Case(f"generate {NEW_TOKENS} tokens", ours, others, each(unlike), 0, 5)


def steered(peers: Peers, ids: Tensor, new: int, *, turns: int) -> Case:
    """Tokens with a vector added after every block, beside unsteered ones of either."""
    vector = direction(peers)
    plan = [wb.Intervention(STREAMS, wb.ops.add(vector), strength=-1.0)]

    def differences(results: Results) -> Differences:
        full = all(len(row) == new for row in results[OURS])  # or it would be no fair race
        return {
            "workbench, unsteered": unlike(results["workbench, unsteered"], results[UNSTEERED]),
            UNSTEERED: float(not full),
            HOOKS: unlike(results[OURS], results[HOOKS]),
        }

    others = {
        "workbench, unsteered": lambda: generate(peers, ids, new),
        UNSTEERED: lambda: theirs(peers, ids, new),
        HOOKS: lambda: hooked(peers, ids, -vector, new),
    }
    name = f"generate {new} tokens, steered at all layers, {ids.shape[0]} × {ids.shape[1]}"
    return Case(name, lambda: generate(peers, ids, new, plan), others, differences, 0, turns)


UNSTEERED, HOOKS = "transformers, unsteered", "transformers, hooks"


def strengths(peers: Peers, ids: Tensor, values: Sequence[float], new: int, *, turns: int) -> Case:
    """Strengths of one vector at every block, one generation each."""
    vector, rows = direction(peers), ids.repeat(len(values), 1)
    plans = [[wb.Intervention(STREAMS, wb.ops.add(vector), strength=s)] for s in values]
    every = torch.tensor(values)[:, None, None] * vector  # batch pos d_model

    def ours() -> Rows:
        made = wb.generate(peers.ours, rows, plans=plans, max_new_tokens=new)
        return list(map(list, made.tokens))

    def one_by_one() -> Rows:
        return [hooked(peers, ids, value * vector, new)[0] for value in values]

    others = {
        "transformers, hooks, one by one": one_by_one,
        "transformers, hooks, one batch": lambda: hooked(peers, rows, every, new),
    }
    name = f"{len(values)} strengths as one batch, {new} tokens of a prompt of {ids.shape[1]}"
    return Case(name, ours, others, each(unlike), 0, turns)


def prompt(peers: Peers) -> Tensor:
    """The prompt of the generations."""
    assert peers.ours.tokenizer is not None
    return torch.tensor([peers.ours.tokenizer.encode(PROMPT)])


def direction(peers: Peers) -> Tensor:
    """A vector short enough that the text goes on, for 64 tokens and without an end."""
    draws = torch.Generator().manual_seed(1)
    return 0.02 * torch.randn(peers.ours.sizes.d_model, generator=draws)


def generate(peers: Peers, ids: Tensor, new: int, plan: Sequence[wb.Intervention] = ()) -> Rows:
    """Our greedy tokens."""
    made = wb.generate(peers.ours, ids, plan=plan, max_new_tokens=new)
    return list(map(list, made.tokens))


def theirs(peers: Peers, ids: Tensor, new: int, *, least: int | None = None) -> Rows:
    """The peer's greedy tokens, `least` of them (else all) before it may end."""
    with torch.inference_mode():
        made = peers.theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new if least is None else least,
            do_sample=False,
            pad_token_id=0,
        )
    return made[:, ids.shape[1] :].tolist()


def hooked(peers: Peers, ids: Tensor, added: Tensor, new: int) -> Rows:
    """The peer's greedy tokens with a hook on every block."""

    def steer(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + added, *output[1:])
        return output + added

    blocks: Sequence[Any] = peers.theirs.model.layers
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(steer).remove)
        return theirs(peers, ids, new, least=0)  # either may end a text, as its steering has it
