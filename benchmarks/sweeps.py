"""Patching sweeps: every head, and every layer and position, beside TransformerLens's own tools.

Denoising, as there: the base is the corrupt prompt, the donor the clean one. Both give the metric
of every cell; the checks compare them cell by cell. How much the two prompts share decides what we
need not run, so the heads are swept twice: with a shared beginning, and with hardly any.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from benchmarks.harness import OURS, Case
from benchmarks.peers import Peers
from workbench.attribution.methods.activation_patching import ActivationPatching
from workbench.attribution.methods.path_patching import PathPatching

METHOD = ActivationPatching(direction="denoising")
STORY = "When {} and {} went to the store, {} gave a drink to"
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
Bridge = Callable[..., Tensor]  # one of `transformer_lens.patching`


def cases(peers: Peers) -> Iterator[Case]:
    """The rows."""
    from transformer_lens import patching

    heads: Any = patching.get_act_patch_attn_head_out_all_pos
    streams: Any = patching.get_act_patch_resid_pre
    z, pre = "blocks.*.attn.hook_z", "blocks.*.hook_resid_pre"
    yield _case(peers, "patch all heads, a beginning shared", SHARED, z, ("layer", "head"), heads)
    yield _case(peers, "patch all heads, all but 1 token apart", APART, z, ("layer", "head"), heads)
    yield _case(peers, "patch layer x position", SHARED, pre, ("layer", "pos"), streams)
    yield _paths(peers, peers.ours.sizes.n_layers * 2 // 3, 3)


def _case(
    peers: Peers,
    name: str,
    contrast: wb.Contrast,
    sites: str,
    axes: tuple[str, ...],
    sweep: Bridge,
) -> Case:
    words = contrast.on(peers.ours)
    target, foil = words.target[0], words.foil[0]
    place = sites.replace("*", "{}")

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, target] - logits[0, -1, foil]

    def bridge() -> Tensor:
        named = [place.format(layer) for layer in range(peers.ours.sizes.n_layers)]
        with torch.inference_mode():
            _, cache = peers.bridge.run_with_cache(words.clean.tokens, names_filter=named)
            return sweep(peers.bridge, words.corrupt.tokens, cache, metric)

    def ours() -> Tensor:
        found = METHOD(peers.ours, contrast, sites=sites, axes=axes)
        return found.scores + found.base

    def check() -> dict[str, float]:
        return {"transformer-lens": float((ours() - bridge()).abs().max())}

    contestants = {OURS: ours, "transformer-lens": bridge}
    cells = ours().numel()
    return Case(f"{name}, {cells} cells", contestants, check, 1e-4, 1)


def _paths(peers: Peers, layer: int, head: int) -> Case:
    """From one head to the query of every later one; of keys and values the peer has no paths here.

    Both start from the two prompts; the peer then runs the whole model once per path.
    """
    from transformer_lens import patching

    words, later = SHARED.on(peers.ours), range(layer + 1, peers.ours.sizes.n_layers)
    target, foil, sender = words.target[0], words.foil[0], f"blocks.{layer}.attn.hook_z"
    queries = tuple(f"blocks.{after}.hook_q_input" for after in later)
    method = PathPatching(receivers=queries, heads=(head,), direction="denoising")

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, target] - logits[0, -1, foil]

    def bridge() -> Tensor:
        run: Any = peers.bridge.run_with_cache
        with torch.inference_mode():
            clean, corrupt = (
                run(batch.tokens, names_filter=[sender])[1]
                for batch in (words.clean, words.corrupt)
            )
            found = patching.get_act_patch_direct_path(
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

    def check() -> dict[str, float]:
        return {"transformer-lens": float((ours() - bridge()).abs().max())}

    contestants = {OURS: ours, "transformer-lens": bridge}
    paths = len(later) * peers.ours.sizes.n_heads
    return Case(f"patch paths from a head, {paths} cells", contestants, check, 1e-4, 1)
