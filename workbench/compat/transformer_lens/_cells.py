"""Many runs that differ from one base run at one site each, as few batches of what differs.

Notable: the value that a cell puts at its site is known before it runs, so it is compared with the
base run's. A cell starts at its block, from the base's stream, and at the first position where it
differs, against the base's keys and values; one that differs nowhere is the base run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.compat.transformer_lens._protocols import PatchedModel
from workbench.core.axes import Logits, Resid
from workbench.core.cache import KeyValueCache
from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.protocols import Model, new_cache
from workbench.core.sites import Site, Sites
from workbench.core.tap import UNTAPPED, Recorder, Tap

Metric = Callable[[Logits], Any]
_TOKENS = 640  # of one batch: as fast as larger ones, and its logits stay within 130 MB at 50,000
_AHEAD = 8  # batches whose cells are made, and sorted by where they begin, at once


@final
@dataclass(frozen=True, eq=False)
class Cell:
    """One run: its number, the site, and the value that stands there instead of the base's."""

    number: int
    site: Site
    value: Float[Tensor, "..."]


@final
@dataclass(frozen=True, eq=False)
class Base:
    """The run that every cell departs from: one forward, and what cells go on from."""

    model: Model
    batch: Batch
    logits: Logits
    streams: Mapping[int, Resid]  # before each block that is patched
    values: Mapping[Site, Tensor]  # at each site that is patched
    cache: KeyValueCache | None  # every key and value; None where a cell must run all positions


def base_run(model: PatchedModel, tokens: Int[Tensor, "batch pos"], sites: Sites) -> Base:
    """Runs the tokens, keeping what the cells at `sites` will need."""
    engine = model.engine
    batch = _batch(model, tokens)
    layers = sorted({site.layer for site in sites if site.layer is not None})
    starts = {layer: Site("blocks.{}.hook_resid_pre", layer) for layer in layers}
    recorder = Recorder((*sites, *starts.values()))
    causal = model.cfg.attention_dir == "causal" and batch.real is None
    cache = new_cache(engine, *batch.tokens.shape) if causal else None
    with torch.no_grad():
        resid = engine.layers(engine.embed(batch, recorder), batch, recorder, cache=cache)
        logits = engine.unembed(resid, UNTAPPED)
    seen = recorder.recorded()
    streams = {layer: seen[start] for layer, start in starts.items()}
    return Base(engine, batch, logits, streams, {site: seen[site] for site in sites}, cache)


def measured(
    base: Base, cells: Iterable[Cell], total: int, metric: Metric
) -> Float[Tensor, " cell"]:
    """The metric of each of `total` cells, which come grouped by site.

    Raises:
        OptionError: If the metric is no single number.
    """
    found = torch.zeros(total, device=base.logits.device)
    with torch.no_grad():
        for _, same in groupby(cells, key=lambda cell: cell.site):
            for cell, logits in _logits(base, same):
                found[cell.number] = as_number(metric(logits))
    return found


def hooked(model: PatchedModel) -> bool:
    """Whether hooks stand on the model."""
    return any(point.fwd_hooks for point in model.hook_dict.values())


def as_number(value: Any) -> Tensor:
    """A metric's result.

    Raises:
        OptionError: If it is no single number.
    """
    number = torch.as_tensor(value).detach()
    if number.numel() != 1:
        allowed = "one number for the logits of all examples; take its mean, say"
        raise OptionError("the metric", allowed, f"shape {tuple(number.shape)}")
    return number.reshape(())


def _batch(model: PatchedModel, tokens: Tensor) -> Batch:
    """The tokens as the facade reads them: masked, where it takes some of them for pads."""
    mask = model.input_to_embed(tokens)[3]
    engine = model.engine
    ids = tokens.to(engine.device)
    real = None if mask is None or bool(mask.all()) else mask.to(engine.device).bool()
    zeros = torch.zeros(len(ids), dtype=torch.long, device=engine.device)
    bare = Batch(ids, real, zeros, zeros)
    return Batch(ids, real, zeros, bare.lengths)


def _logits(base: Base, cells: Iterator[Cell]) -> Iterator[tuple[Cell, Logits]]:
    """Cells of one site with their logits, in batches by where they begin."""
    rows, width = base.batch.tokens.shape
    while some := list(islice(cells, _AHEAD * max(1, _TOKENS // (rows * width)))):
        begun = sorted(((_begin(base, cell), cell) for cell in some), key=lambda pair: pair[0])
        yield from ((cell, base.logits) for at, cell in begun if at == width)
        left = [(at, cell) for at, cell in begun if at < width]
        while left:
            start = left[0][0]
            size = max(1, _TOKENS // (rows * (width - start)))
            yield from _run(base, [cell for _, cell in left[:size]], start)
            left = left[size:]


def _begin(base: Base, cell: Cell) -> int:
    """The first position at which a cell differs; the number of positions if it does not."""
    differs = cell.value != base.values[cell.site]
    if not bool(differs.any()):
        return base.batch.tokens.shape[1]
    axis = _position_axis(cell.site)
    if base.cache is None or axis is None:
        return 0
    return int(differs.movedim(axis, 0).flatten(1).any(1).int().argmax())


def _position_axis(site: Site) -> int | None:
    return next((i for i, axis in enumerate(site.axes) if axis in ("pos", "query")), None)


def _run(base: Base, cells: Sequence[Cell], start: int) -> Iterator[tuple[Cell, Logits]]:
    """One batch of cells, from their block and from position `start` on."""
    rows, site = len(base.batch.tokens), cells[0].site
    layer = site.layer or 0
    batch, cache = base.batch.repeat(len(cells)), None
    if start:
        begun = batch.start + start
        batch = Batch(batch.tokens[:, start:].contiguous(), None, begun, batch.prompt)
        cache = _prefix(base, layer, len(cells), start)
    put = Put(site, torch.cat([cell.value for cell in cells]))
    stream = base.streams[layer][:, start:].repeat(len(cells), 1, 1)
    resid = base.model.layers(stream, batch, put, first=layer, cache=cache)
    logits = base.model.unembed(resid, UNTAPPED)
    for i, cell in enumerate(cells):
        own = logits[i * rows : (i + 1) * rows]
        yield cell, torch.cat([base.logits[:, :start], own], 1) if start else own


def _prefix(base: Base, layer: int, cells: int, start: int) -> KeyValueCache:
    """The base's keys and values of the first positions, once per cell, from one block on."""
    rows, width = base.batch.tokens.shape
    cache = new_cache(base.model, cells * rows, width)
    real = torch.ones(cells * rows, start, dtype=torch.bool, device=base.model.device)
    cache.reserve(real, padded=False)
    assert base.cache is not None
    sizes, stream = base.model.sizes, base.streams[layer]
    none = stream.new_zeros(rows, sizes.n_key_value_heads, 0, sizes.d_head)
    for block in range(layer, sizes.n_layers):
        keys, values = base.cache.append(block, none, none)  # no columns: hands back what is there
        cache.append(
            block,
            keys[:, :, :start].repeat(cells, 1, 1, 1),
            values[:, :, :start].repeat(cells, 1, 1, 1),
        )
    return cache


@final
class Put(Tap):
    """Puts a value at one site: its last positions, where the pass has only those."""

    def __init__(self, site: Site, value: Tensor) -> None:
        self._site, self._value = site, value

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site != self._site:
            return value
        axis = _position_axis(site)
        if axis is None:
            return self._value
        width, own = self._value.shape[axis], value.shape[axis]
        return self._value.narrow(axis, width - own, own)

    @override
    def wants(self, site: Site) -> bool:
        return site == self._site
