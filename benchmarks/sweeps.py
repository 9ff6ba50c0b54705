"""Patching sweeps: every head, and every layer and position, beside TransformerLens's own tools.

Denoising, as there: the base is the corrupt prompt, the donor the clean one. Both give the metric
of every cell, and are compared cell by cell. How much the two prompts share decides what we need
not run, so either is swept twice: with a shared beginning, and with hardly any. The prompts are of
15 tokens, the first of which is the one that TransformerLens puts before every text.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

import workbench as wb
from benchmarks.harness import Case, apart, each
from benchmarks.peers import Peers
from workbench.attribution.methods.activation_patching import ActivationPatching
from workbench.attribution.methods.path_patching import PathPatching

METHOD = ActivationPatching(direction="denoising")
STORY = "<|im_start|>When {} and {} went to the store, {} gave a drink to"
SHARED = wb.Contrast(
    clean=STORY.format("Mary", "John", "John"),
    corrupt=STORY.format("Mary", "John", "Mary"),
    target=" Mary",
    foil=" John",
)
APART = wb.Contrast(
    clean=STORY.format("Mary", "John", "John"),
    corrupt=STORY.format("John", "Mary", "Mary"),
    target=" Mary",
    foil=" John",
)
What = Literal["heads", "layers × positions"]
Bridge = Callable[..., Tensor]  # one of `transformer_lens.patching`


def cases(peers: Peers) -> Iterator[Case]:
    """The rows."""
    for what in ("heads", "layers × positions"):
        yield patching(peers, what, SHARED, "10 of 15 tokens shared", turns=3)
        yield patching(peers, what, APART, "2 of 15 tokens shared", turns=3)
    yield paths(peers, peers.ours.sizes.n_layers * 2 // 3, 3)


def patching(
    peers: Peers,
    what: What,
    contrast: wb.Contrast,
    shared: str,
    *,
    turns: int,
    beside: bool = True,
) -> Case:
    """One sweep; TransformerLens takes part where `beside` says so."""
    place, axes, sweep = _parts(what)
    words, layers = contrast.on(peers.ours), range(peers.ours.sizes.n_layers)
    named = [place.format(layer) for layer in layers]
    metric = _metric(words.target, words.foil)
    n_tokens, n_heads = words.clean.tokens.shape[1], peers.ours.sizes.n_heads

    def bridge() -> Tensor:
        with torch.inference_mode():
            _, cache = peers.bridge.run_with_cache(words.clean.tokens, names_filter=named)
            return sweep(peers.bridge, words.corrupt.tokens, cache, metric)

    def ours() -> Tensor:
        found = METHOD(peers.ours, contrast, sites=place.replace("{}", "*"), axes=axes)
        return found.scores + found.base.mean()

    cells = len(layers) * (n_heads if what == "heads" else n_tokens)
    others = {"transformer-lens": bridge} if beside else {}
    name = f"patch {what}, {shared}, {cells} cells"
    return Case(name, ours, others, each(apart), 1e-4, turns)


def paths(peers: Peers, layer: int, head: int) -> Case:
    """From one head to the query of every later one; of keys and values the peer has no paths here.

    Both start from the two prompts; the peer then runs the whole model once per path.
    """
    from transformer_lens import patching as tools

    words, later = SHARED.on(peers.ours), range(layer + 1, peers.ours.sizes.n_layers)
    metric, sender = _metric(words.target, words.foil), f"blocks.{layer}.attn.hook_z"
    queries = tuple(f"blocks.{after}.hook_q_input" for after in later)
    method = PathPatching(receivers=queries, heads=(head,), direction="denoising")

    def bridge() -> Tensor:
        run: Any = peers.bridge.run_with_cache
        with torch.inference_mode():
            clean, corrupt = (
                run(batch.tokens, names_filter=[sender])[1]
                for batch in (words.clean, words.corrupt)
            )
            found = tools.get_act_patch_direct_path(
                peers.bridge,
                words.corrupt.tokens,
                clean,
                corrupt,
                metric,
                layer,
                head,
                "q",
                verbose=False,
            )
        return found[layer + 1 :].flatten()

    def ours() -> Tensor:
        found = method(peers.ours, SHARED, sites=sender)
        return (found.scores + found.base).flatten()

    n_paths = len(later) * peers.ours.sizes.n_heads
    name = f"patch paths from a head, {n_paths} cells"
    return Case(name, ours, {"transformer-lens": bridge}, each(apart), 1e-4, 3)


def _parts(what: What) -> tuple[str, tuple[str, ...], Bridge]:
    """Sites by layer, axes, and TransformerLens's tool."""
    from transformer_lens import patching as tools

    heads: Any = tools.get_act_patch_attn_head_out_all_pos
    streams: Any = tools.get_act_patch_resid_pre
    if what == "heads":
        return "blocks.{}.attn.hook_z", ("layer", "head"), heads
    return "blocks.{}.hook_resid_pre", ("layer", "pos"), streams


def _metric(target: tuple[int, ...], foil: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The logit difference at the last token, over the examples."""

    def metric(logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits))
        return (logits[rows, -1, list(target)] - logits[rows, -1, list(foil)]).mean()

    return metric
