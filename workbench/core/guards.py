"""What gradients, sweeps and generations will take, before they do: refused where it would not fit.

Notable: arithmetic, as `workbench.core.estimate` is for runs; nothing is computed, and the system
is asked only where it may matter. What autograd keeps of a block was counted with the profiler, in
multiples of its activations: it is a property of the kernels, and the tests hold it to them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from workbench.core import estimate
from workbench.core.axes import HEAD_INPUTS, SQUARES
from workbench.core.data import Batch
from workbench.core.errors import MemoryLimitError
from workbench.core.estimate import first_block, megabytes, site_bytes
from workbench.core.program import Program, block_of
from workbench.core.protocols import Model
from workbench.core.replay import block_ends
from workbench.core.sites import Sites, is_glob, select
from workbench.core.waves import Cell

KEPT_SQUARES = 2  # of scores and patterns, for one backward; ...
TWICE_SQUARES = 4  # ... for the second derivative, ...
PUSHED_SQUARES = 3  # ... and at once, for each direction of it
SAMPLED = 4  # the logits, their logarithms, and what a sampler sorts


@final
@dataclass(frozen=True)
class Need:
    """Bytes that something will take, part by part, and what would take less."""

    what: str
    parts: Mapping[str, int]
    advice: tuple[str, ...]

    @property
    def total(self) -> int:
        """All parts at once."""
        return sum(self.parts.values())


def check_need(need: Need, model: Model) -> None:
    """Refuses what would take the machine's last memory.

    Raises:
        MemoryLimitError: If it would not fit; says what would take less.
    """
    if need.total <= estimate.UNASKED:
        return
    free = estimate.available_memory(model.device)
    if free is None or need.total <= free:
        return
    told = ", ".join(f"{name} {megabytes(size)}" for name, size in need.parts.items())
    raise MemoryLimitError(
        f"The {need.what} would take {megabytes(need.total)}: {told}; {megabytes(free)} available. "
        f"Less is taken by {'; '.join(need.advice)}."
    )


@final
class _Block:
    """Bytes of the tensors of one block over a batch of so many rows and columns."""

    def __init__(self, model: Model, rows: int, columns: int) -> None:
        sizes, item = model.sizes, model.dtype.itemsize
        tokens = rows * columns * item
        self.stream = tokens * sizes.d_model
        self.heads = 2 * tokens * (sizes.n_heads + sizes.n_key_value_heads) * sizes.d_head
        self.neurons = tokens * sizes.d_mlp
        self.keys = 2 * tokens * sizes.n_key_value_heads * sizes.d_head
        self.square = rows * sizes.n_heads * columns**2 * max(item, 4)
        block = first_block(model)
        self.widths = sum("d_mlp" in site.axes for site in block)  # 3 where a gate multiplies

    @property
    def graph(self) -> int:
        """What one backward needs of a block: the streams, the heads, the neurons."""
        return 2 * self.stream + self.heads + max(2 * self.widths - 3, 0) * self.neurons

    @property
    def graph_twice(self) -> int:
        """The same for a backward of the backward, with open attention."""
        gated = 9 if self.widths > 2 else 2
        return 4 * self.stream + 2 * self.heads + gated * self.neurons + TWICE_SQUARES * self.square

    @property
    def forward(self) -> int:
        """The most that a block holds at once without a graph."""
        return 5 * self.stream + max(2 * self.heads, (self.widths + 1) * self.neurons)

    @property
    def backward(self) -> int:
        """The most that a block's backward holds beside the graph."""
        return 4 * self.stream + max(self.widths * self.neurons, self.heads)


def gradients_need(  # noqa: PLR0913 - all that a graph is made of
    model: Model,
    batch: Batch,
    program: Program,
    inputs: Sites,
    outputs: Sites,
    *,
    last: int | None,
    words: int,
    directions: int = 1,
    twice: bool = False,
) -> Need:
    """What derivatives take; `words` are the vocabulary columns unembedded of every token.

    The forward ends before block `last`, or after all of them.
    `directions` are the cotangents or tangents at a time, `twice` says that what is pulled back is
    differentiated again.
    """
    rows, columns = len(batch.tokens), batch.width
    block = _Block(model, rows, columns)
    order = {site: place for place, site in enumerate(model.sites)}
    early = min(inputs, key=order.__getitem__)
    first = block_of(early, model)
    first += early in block_ends(model.sites)  # nothing of its own block comes after
    layers = range(max(first, 0), model.sizes.n_layers if last is None else last)
    seen = {*inputs, *outputs, *program.by_site}
    within = {site: block_of(site, model) for site in seen if site.layer is not None}
    opened = {at for site, at in within.items() if site.short in SQUARES and at in layers}
    wide = {site for site in seen if site.short in (*HEAD_INPUTS, "attn.hook_result")}
    graph = len(layers) * (block.graph_twice if twice else block.graph)
    graph += 0 if twice else len(opened) * KEPT_SQUARES * block.square
    graph += sum(
        site_bytes(site, model, rows, columns) for site in wide if within.get(site) in layers
    )
    squares = PUSHED_SQUARES if twice else bool(opened)
    logits = rows * columns * words * model.dtype.itemsize
    results = _bytes(inputs, model, batch) + (_bytes(outputs, model, batch) if twice else 0)
    return Need(
        "gradient" if not twice else "product",
        {
            "graph": max(graph, directions * results),
            "logits": logits * (1 + directions),
            "backward": directions * max(block.backward, squares * block.square),
        },
        _few(
            (f"fewer rows than {rows} at a time", rows > 1),
            (f"fewer directions than {directions} at a time", directions > 1),
            ("sites of later blocks only, which leave out the graph before them", len(layers) > 1),
            ("a metric instead of record= and logits=", twice),
            ("shorter prompts", True),
        ),
    )


def sweep_need(
    model: Model, batch: Batch, cells: Sequence[Cell], groups: Sequence[Sequence[Cell]]
) -> Need:
    """What a sweep takes: the base run with its keys and streams, and the widest of its batches."""
    rows, columns = len(batch.tokens), batch.width
    block, starts = _Block(model, rows, columns), {max(cell.layer, 0) for cell in cells}
    opened = _opens({name for cell in cells for one in cell.plan for name in one.sites}, model)
    widest = max((_wave(model, batch, wave, opened=opened) for wave in groups), default=0)
    return Need(
        "sweep",
        {
            "streams of the base run": len(starts) * block.stream,
            "its keys and values": model.sizes.n_layers * block.keys,
            "a batch of cells": max(widest, block.forward),
        },
        _few(
            ("a smaller max_tokens= or max_bytes=", widest > block.forward),
            (f"fewer rows than {rows} at a time", rows > 1),
            (f"sites of fewer blocks than {len(starts)} at a time", len(starts) > 1),
            ("shorter prompts", True),
        ),
    )


def generation_need(  # noqa: PLR0913 - what decides a generation's size
    model: Model,
    batch: Batch,
    program: Program,
    room: int,
    sites: Sites,
    *,
    cached: bool,
    chunk: int | None,
) -> Need:
    """What a generation takes: its cache, its widest pass, logits, and what it records."""
    rows, width = len(batch.tokens), batch.width
    whole = width + room
    columns = min(chunk or width, width) if cached else whole
    every = _Block(model, rows, whole)
    opened = any(site.short in SQUARES for site in program.by_site)
    pass_ = _Block(model, rows, columns).forward
    pass_ += estimate.OPEN_SQUARES * every.square * columns // whole if opened else 0
    recorded = sum(site_bytes(site, model, rows, whole) for site in sites)
    return Need(
        "generation",
        {
            "cache": model.sizes.n_layers * every.keys if cached else 0,
            "the widest pass": pass_,
            "logits": SAMPLED * rows * model.sizes.d_vocab * max(model.dtype.itemsize, 4),
            "record": 2 * recorded,  # by pass, and joined at the end
        },
        _few(
            (f"fewer rows than {rows} at a time", rows > 1),
            (f"a max_new_tokens below {room}", room > 1),
            ("prefill_chunk=, for smaller passes over the prompts", cached and columns > 64),
            ("fewer sites in record=", bool(sites)),
        ),
    )


def _opens(names: Iterable[str], model: Model) -> bool:
    """Whether some of these sites have attention leave its fused kernel."""
    plain = [name for name in names if not is_glob(name)]
    globs = [name for name in names if is_glob(name)]
    found = [site.short for site in select(globs, model.sites)] if globs else []
    return any(name.endswith(tuple(SQUARES)) for name in (*plain, *found))


def _wave(model: Model, batch: Batch, wave: Sequence[Cell], *, opened: bool) -> int:
    """The most that a batch of cells holds: a block, and the keys its rows look back at."""
    rows, width = len(batch.tokens), batch.width
    rows *= len(wave)
    columns = width - min(cell.column or 0 for cell in wave)
    whole = _Block(model, rows, width)
    squares = estimate.OPEN_SQUARES * whole.square * columns // width if opened else 0
    return _Block(model, rows, columns).forward + 2 * whole.keys + squares


def _bytes(sites: Sites, model: Model, batch: Batch) -> int:
    rows, columns = len(batch.tokens), batch.width
    return sum(site_bytes(site, model, rows, columns) for site in sites)


def _few(*advice: tuple[str, bool]) -> tuple[str, ...]:
    return tuple(words for words, helps in advice if helps)
