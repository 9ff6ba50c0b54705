"""Many runs that differ from one base run at one site each, as few batches of what differs.

Notable: the value that a cell puts at its site is known before it runs, so it is compared with the
base run's. Cells begin at the first position where one of their batch differs, against the base's
keys and values, and each joins the batch at its own block, from the base's stream; one that differs
nowhere is the base run. Logits are computed where the metric reads them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.compat.transformer_lens._logits import Pool
from workbench.compat.transformer_lens._protocols import Cache, PatchedModel
from workbench.core.axes import Logits, Resid
from workbench.core.cache import KeyValueCache
from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.protocols import Model, new_cache
from workbench.core.sites import Site, Sites
from workbench.core.tap import UNTAPPED, Recorder, Tap, chain

Metric = Callable[[Logits], Any]
_TOKENS = 1024  # of one batch; larger ones are no faster
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

    def unembed(self, stream: Resid) -> Logits:
        """Logits of a last stream."""
        return self.model.unembed(stream, UNTAPPED)


def base_run(
    model: PatchedModel, tokens: Int[Tensor, "batch pos"], sites: Sites, like: Cache
) -> Base:
    """Runs the tokens, keeping what the cells at `sites` will need.

    The sites of `like`, the donor's cache, are asked for too: so this run uses the kernels that the
    donor's used, and where the prompts are alike their activations are, bit for bit.
    """
    engine = model.engine
    batch = _batch(model, tokens)
    layers = sorted({site.layer for site in sites if site.layer is not None})
    starts = {layer: Site("blocks.{}.hook_resid_pre", layer) for layer in layers}
    recorder = _Alike((*sites, *starts.values()), like)
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
    """The metric of each of `total` cells.

    Raises:
        OptionError: If the metric is no single number.
    """
    found = torch.zeros(total, device=base.logits.device)
    with torch.no_grad():
        for cell, logits in _logits(base, iter(cells)):
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
    """Cells with their logits, in batches by where they begin."""
    rows, width = base.batch.tokens.shape
    while some := list(islice(cells, _AHEAD * max(1, _TOKENS // (rows * width)))):
        begun = sorted(((_begin(base, cell), cell) for cell in some), key=lambda pair: pair[0])
        yield from ((cell, base.logits) for at, cell in begun if at == width)
        left = [(at, cell) for at, cell in begun if at < width]
        while left:
            start = left[0][0]
            size = max(1, _TOKENS // (rows * (width - start)))
            together = sorted((cell for _, cell in left[:size]), key=_block)
            pool = Pool(base.logits, _run(base, together, start), base.unembed)
            yield from ((cell, pool.cell(i)) for i, cell in enumerate(together))
            left = left[size:]


def _block(cell: Cell) -> int:
    return cell.site.layer or 0


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


def _run(base: Base, cells: Sequence[Cell], start: int) -> Float[Tensor, "cell_rows later d_model"]:
    """The last stream of cells in the order of their blocks, from position `start` on."""
    joining = {block: list(same) for block, same in groupby(cells, key=_block)}
    blocks = [*joining, base.model.sizes.n_layers]
    stream = base.logits.new_zeros(0, 1, 1)
    for block, until in pairwise(blocks):
        new, there = joining[block], len(stream)
        fresh = base.streams[block][:, start:].repeat(len(new), 1, 1)
        stream = torch.cat([stream, fresh]) if there else fresh
        many = len(stream) // len(base.batch.tokens)
        cache = _prefix(base, range(block, until), many, start) if start else None
        put, batch = _puts(new, there), _later(base.batch.repeat(many), start)
        stream = base.model.layers(stream, batch, put, first=block, last=until, cache=cache)
    return stream


def _puts(cells: Sequence[Cell], there: int) -> Tap:
    """What cells of one block put at their sites, the first of them in row `there`."""
    taps: list[Tap] = []
    for site, same in groupby(cells, key=lambda cell: cell.site):
        value = torch.cat([cell.value for cell in same])
        taps.append(Put(site, value, there))
        there += len(value)
    return chain(*taps)


def _later(batch: Batch, start: int) -> Batch:
    """The same rows from a position on."""
    if not start:
        return batch
    return Batch(batch.tokens[:, start:].contiguous(), None, batch.start + start, batch.prompt)


def _prefix(base: Base, blocks: range, cells: int, start: int) -> KeyValueCache:
    """The base's keys and values of the first positions, once per cell, for some blocks."""
    rows, width = base.batch.tokens.shape
    cache = new_cache(base.model, cells * rows, width)
    real = torch.ones(cells * rows, start, dtype=torch.bool, device=base.model.device)
    cache.reserve(real, padded=False)
    assert base.cache is not None
    sizes = base.model.sizes
    none = base.logits.new_zeros(rows, sizes.n_key_value_heads, 0, sizes.d_head)
    for block in blocks:
        keys, values = base.cache.append(block, none, none)  # no columns: hands back what is there
        first = (part[:, :, :start].repeat(cells, 1, 1, 1) for part in (keys, values))
        cache.append(block, *first)
    return cache


@final
class _Alike(Tap):
    """Records some sites, and asks for all that another run has recorded."""

    def __init__(self, sites: Sites, like: Cache) -> None:
        self._recorder, self._like = Recorder(sites), like

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return self._recorder(site, value)

    @override
    def wants(self, site: Site) -> bool:
        return self._recorder.wants(site) or str(site) in self._like

    def recorded(self) -> Mapping[Site, Tensor]:
        """What was seen, by site."""
        return self._recorder.recorded()


@final
class Put(Tap):
    """Puts values at one site, from one row on: their last positions, if a pass has only those."""

    def __init__(self, site: Site, value: Tensor, row: int = 0) -> None:
        self._site, self._value, self._row = site, value, row

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site != self._site:
            return value
        put, axis = self._value, _position_axis(site)
        if axis is not None:
            own = value.shape[axis]
            put = put.narrow(axis, put.shape[axis] - own, own)
        if len(put) == len(value):
            return put
        end = self._row + len(put)
        return torch.cat([value[: self._row], put.to(value), value[end:]])

    @override
    def wants(self, site: Site) -> bool:
        return site == self._site
