"""Direct paths: what one head's write does through one later head's query, key or value alone.

Notable: heads of a block do not see one another. So all of a block's heads get the changed input
at once, and one head's z of that is what it would be if only its own input had changed; with
grouped attention too, where a path still ends in one head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from workbench.compat.transformer_lens._cells import (
    Base,
    Cell,
    Metric,
    Put,
    base_run,
    hooked,
    measured,
)
from workbench.compat.transformer_lens._protocols import Cache, PatchedModel
from workbench.core.errors import OptionError
from workbench.core.options import index
from workbench.core.sites import Site, one_site
from workbench.core.tap import Recorder, chain

Component = Literal["q", "k", "v"]
Tokens = Int[Tensor, "batch pos"]


def get_act_patch_direct_path(  # noqa: PLR0913 - the classic signature
    model: PatchedModel,
    corrupted_tokens: Tokens,
    clean_cache: Cache,
    corrupted_cache: Cache,
    patching_metric: Metric,
    src_layer: int,
    src_head: int,
    component: Component = "q",
    verbose: bool = False,  # noqa: FBT001, FBT002, ARG001 - the classic shows its progress
) -> Float[Tensor, "layer head"]:
    """The metric where one head's change reaches one later head by one of its inputs only.

    The change is (clean − corrupted) z·W_O of the source; it is added to the q, k or v input of
    the later head, whose norm is computed anew. Zero for layers up to the source's.

    Raises:
        OptionError: If there is no such head or component, hooks stand on the model, or a norm
            follows the attention.
    """
    caches = (clean_cache, corrupted_cache)
    heads = [_within("src_head", src_head, model.cfg.n_heads)]
    paths = _Paths(model, corrupted_tokens, caches, _component(component))
    return paths.measure(
        _within("src_layer", src_layer, model.cfg.n_layers), heads, patching_metric
    )[0]


def get_act_patch_direct_path_all_sources(  # noqa: PLR0913 - the classic signature
    model: PatchedModel,
    corrupted_tokens: Tokens,
    clean_cache: Cache,
    corrupted_cache: Cache,
    patching_metric: Metric,
    component: Component = "q",
    verbose: bool = False,  # noqa: FBT001, FBT002, ARG001 - the classic shows its progress
) -> Float[Tensor, "src_layer src_head layer head"]:
    """The same from every head to every later one.

    Raises:
        OptionError: If there is no such component, hooks stand on the model, or a norm follows
            the attention.
    """
    caches = (clean_cache, corrupted_cache)
    paths = _Paths(model, corrupted_tokens, caches, _component(component))
    heads = range(model.cfg.n_heads)
    layers = range(model.cfg.n_layers)
    return torch.stack([paths.measure(layer, heads, patching_metric) for layer in layers])


def _component(given: str) -> str:
    if given not in ("q", "k", "v"):
        raise OptionError("component", "'q', 'k' or 'v'", given)
    return given


def _first(change: Float[Tensor, "batch pos d"]) -> int:
    """The first position that changes; nothing before it can, where no token looks ahead."""
    moved = (change != 0).any(-1).any(0)
    return int(moved.int().argmax()) if bool(moved.any()) else len(moved)


def _within(option: str, given: int, count: int) -> int:
    if not 0 <= index(option, given) < count:
        raise OptionError(option, f"0…{count - 1}", given)
    return given


@final
@dataclass(frozen=True, eq=False)
class _Paths:
    model: PatchedModel
    tokens: Tensor
    caches: tuple[Cache, Cache]  # clean, corrupted
    component: str

    def measure(
        self, source: int, heads: Sequence[int], metric: Metric
    ) -> Float[Tensor, "source layer head"]:
        """The metric from some heads of one layer to every later head.

        Raises:
            OptionError: If hooks stand on the model, or a norm follows the attention.
        """
        if hooked(self.model):
            raise OptionError("model", "one without hooks of its own; reset_hooks() first", "hooks")
        n_layers, n_heads = self.model.cfg.n_layers, self.model.cfg.n_heads
        later, known = range(source + 1, n_layers), self.model.engine.sites
        if any(str(site) == f"blocks.{source}.ln1_post.hook_scale" for site in known):
            allowed = "one whose attention is added to the stream as it is: a norm follows it"
            raise OptionError("model", allowed, self.model.engine)
        values = torch.zeros(len(heads), n_layers, n_heads, device=self.model.engine.device)
        if not later:
            return values
        sites = {layer: one_site(f"blocks.{layer}.attn.hook_z", known) for layer in later}
        base = base_run(self.model, self.tokens, tuple(sites.values()), self.caches[0])
        cells = self._cells(base, sites, self._changes(source, heads))
        flat = measured(base, cells, len(later) * len(heads) * n_heads, metric)
        values[:, source + 1 :] = flat.reshape(len(later), len(heads), n_heads).transpose(0, 1)
        return values

    def _changes(self, source: int, heads: Sequence[int]) -> Float[Tensor, "source batch pos d"]:
        """How each head's write differs."""
        clean, corrupted = (cache[f"blocks.{source}.attn.hook_z"] for cache in self.caches)
        chosen = list(heads)
        moved = (clean - corrupted)[:, :, chosen].to(self.model.engine.device)
        weights = self.model.blocks[source].attn.W_O[chosen]
        return einsum(moved, weights, "batch pos head e, head e d -> head batch pos d")

    def _cells(
        self, base: Base, sites: Mapping[int, Site], changes: Float[Tensor, "source batch pos d"]
    ) -> Iterator[Cell]:
        numbers = iter(range(len(sites) * len(changes) * self.model.cfg.n_heads))
        for layer, site in sites.items():
            reached = self._reached(base, layer, changes)  # source batch pos head d_head
            for z, change in zip(reached, changes, strict=True):
                start = 0 if base.cache is None else _first(change)
                for head in range(z.shape[2]):
                    value = base.values[site].clone()
                    value[:, start:, head] = z[:, start:, head]
                    yield Cell(next(numbers), site, value)

    def _reached(
        self, base: Base, layer: int, changes: Float[Tensor, "source batch pos d"]
    ) -> Float[Tensor, "source batch pos head d_head"]:
        """Every head's z, if its own input were changed: one block's forward, twice."""
        site = Site(f"blocks.{{}}.attn.hook_{self.component}", layer)
        stream, many = base.streams[layer], len(changes)
        batch = base.batch.repeat(many)
        changed = rearrange(changes + stream, "source batch pos d -> (source batch) pos d")
        read, written = Recorder((site,)), Recorder((Site("blocks.{}.attn.hook_z", layer),))
        model = base.model
        with torch.no_grad():
            model.layers(changed, batch, read, first=layer, last=layer + 1)
            put = Put(site, read.recorded()[site])
            alike = repeat(stream, "batch pos d -> (source batch) pos d", source=many)
            model.layers(alike, batch, chain(put, written), first=layer, last=layer + 1)
        (z,) = written.recorded().values()
        return rearrange(z, "(source batch) pos head e -> source batch pos head e", source=many)
