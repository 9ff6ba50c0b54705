"""What a run of everything keeps, and how the rest is made again when somebody reads it.

Notable: the stream before each block is all that a block needs, as attention looks no further back
than its own block's input. So a trace of every site costs as much memory as one of the stream, and
reading a site costs one block, or as much of it as comes before that site. A replay runs under the
same plan, and its receipts are dropped: they were counted in the run. Where there is an encoder, a
stream is kept as its own stack has it, and once, beside them, the memory which all blocks of the
decoder read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import DECODER, MEMORY, Logits, Memory, OfStack, Resid
from workbench.core.data import Batch
from workbench.core.ledger import Ledger
from workbench.core.modes import forward_only, outside_inference
from workbench.core.plan import Plan
from workbench.core.program import Program, block_of
from workbench.core.protocols import Model
from workbench.core.sites import Site, Sites
from workbench.core.tap import Enough, Keep, Recorder, Tap, Until, as_it_is, chain

ENTRY = "hook_resid_pre"
EXITS = ("hook_resid_post", "hook_normalized_resid_post")  # the latter after a post-norm


@runtime_checkable
class Source(Protocol):
    """What makes the activations that a trace does not keep, when they are read."""

    @property
    def sites(self) -> Sites:
        """What can be read, in forward order."""
        ...

    def read(self, sites: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
        """The activations at `sites`, which are in forward order."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Left:
    """What one forward left: activations kept, what makes the others, and what was unembedded."""

    activations: Mapping[Site, Tensor]
    replay: Source | None
    unembedded: Logits | None

    def read(self, sites: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
        """Sites and their activations; of those that are replayed each block is run once."""
        missing = [site for site in sites if site not in self.activations]
        replayed = iter(()) if self.replay is None else self.replay.read(missing)
        for site in sites:
            kept = self.activations.get(site)
            yield (site, kept) if kept is not None else next(replayed)


@final
class Streams(Tap):
    """Keeps the stream as each block takes it, so it must come before the plan in a chain."""

    def __init__(self, first: int, keep: Keep = as_it_is) -> None:
        self._first, self._keep = first, keep
        self._kept: list[Resid] = []

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site.short == ENTRY:
            name = stream_name(self._first + len(self._kept))
            self._kept.append(self._keep(name, value))
        return value

    @override
    def wants(self, site: Site) -> bool:
        return False

    def with_last(self, resid: Resid, n_layers: int) -> tuple[OfStack, ...]:
        """The streams before the blocks, and the one after the last of them."""
        return (*self._kept, self._keep(stream_name(n_layers), resid))


@final
@dataclass(frozen=True, eq=False)
class Replay:
    """A run that can be made again, block by block; immutable, so threads may share it."""

    model: Model
    batch: Batch
    program: Program
    sites: Sites
    first: int
    streams: tuple[OfStack, ...]  # before each block from `first` on, and after the last
    memory: Memory | None = None  # as the plan left it; None without an encoder

    def kept(self) -> Mapping[Site, Tensor]:
        """The sites whose value is one of the kept streams: nothing has to run for them."""
        found = kept_streams(self.sites, self.program, self.model.sizes.n_encoder_layers)
        kept = {site: self.streams[layer - self.first] for site, layer in found.items()}
        if self.memory is None:
            return kept
        return {**kept, **{site: self.memory for site in self.sites if site.name == MEMORY}}

    def read(self, sites: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
        """The activations at `sites`, in forward order; each block runs once, and is then dropped.

        Costs one block, embedding or unembedding for each of those the sites are in, up to the last
        site of it: patterns cost no feed-forward.
        """
        for block, some in groupby(sites, key=lambda site: block_of(site, self.model)):
            yield from self._block(block, tuple(some)).items()

    @outside_inference
    def _block(self, block: int, sites: Sites) -> Mapping[Site, Tensor]:
        recorder, ledger = Recorder(sites), Ledger(self.program.plan)
        acting = self.program.tap(self.batch, ledger)
        tap = chain(acting, recorder, Until(sites))
        with forward_only(), suppress(Enough):
            if block < 0:
                self.model.embed(self.batch, tap)
            elif block == self.model.sizes.n_layers:
                self.model.unembed(self.streams[-1], tap)
            else:
                self.model.layers(self._before(block), self.batch, tap, first=block, last=block + 1)
        seen = recorder.recorded()
        return {site: seen[site] for site in sites}

    def _before(self, block: int) -> Resid:
        """The stream before a block: of a decoder's, with the memory it reads."""
        stream = self.streams[block - self.first]
        if self.memory is None or block < self.model.sizes.n_encoder_layers:
            return stream
        return torch.cat([self.memory, stream], 1)


def kept_streams(sites: Sites, program: Program, n_encoder: int = 0) -> Mapping[Site, int]:
    """The sites whose value is the stream before a block, or after the last, and which block.

    What the last of `n_encoder` blocks leaves is no such stream: a norm comes after it.
    """
    found: dict[Site, int] = {}
    ends = block_ends(sites)
    for site in sites:
        if site.layer is None:
            continue
        block = site.layer + (n_encoder if site.stack == DECODER else 0)
        if site in ends and (not n_encoder or block + 1 != n_encoder):
            found[site] = block + 1
        elif site.short == ENTRY and site not in program.by_site:
            found[site] = block
    return found


def block_ends(sites: Sites) -> frozenset[Site]:
    """The last site of each block: the stream that the next one takes."""
    last = {(site.stack, site.layer): site for site in sites if site.layer is not None}
    return frozenset(site for site in last.values() if site.short in EXITS)


def stream_name(layer: int) -> str:
    """What the stream before a block is called in files."""
    return f"stream.{layer}"


def can_replay(model: Model, plan: Plan) -> bool:
    """Whether a block can be made again: the plan is data, and blocks begin and end as streams.

    A bare function may answer differently the second time, or count how often it is called; a gate
    may read in an earlier block than it acts in.
    """
    if not plan.replayable or any(one.gate is not None for one in plan):
        return False
    ends: dict[tuple[str, int], list[str]] = {}
    for site in model.sites:
        if site.layer is not None:
            ends.setdefault((site.stack, site.layer), []).append(site.short)
    whole = all(names[0] == ENTRY and names[-1] in EXITS for names in ends.values())
    return whole and len(ends) == model.sizes.n_layers
