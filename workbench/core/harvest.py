"""Activations of many texts: what probes, directions and dictionaries are made from.

    harvest        in memory, a row or more per text
    harvest_into   streamed into sinks: moments, largest values, histograms, or your own

`workbench.core.activation_store` writes them to disk. Below all three is `workbench.core.reader`:
batches cut by length, a forward that ends at the last site, nothing unembedded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from workbench.core.data import PaddingSide
from workbench.core.pace import Pace, Pacer
from workbench.core.plan import Interventions
from workbench.core.protocols import Model
from workbench.core.reader import Reader, Text, reader_of
from workbench.core.reading import ReadPosition, ReadPositions, Where
from workbench.core.run import Check
from workbench.core.sinks.rows import Rows
from workbench.core.sinks.sink import Sink, push_all, sinks_of
from workbench.core.sites import Selector, Site

__all__ = ["Harvest", "Progress", "ReadPosition", "Tally", "harvest", "harvest_into"]
Progress = Callable[[int, int], None]


@final
@dataclass(frozen=True, eq=False)
class Harvest:
    """Rows at each site, in the order of the texts and of the positions read of each.

    Heads are flattened into the row. `where` says what each row was read of; `lengths` are the
    texts' token counts.
    """

    rows: Mapping[Site, Float[Tensor, "row _d"]]
    position: ReadPositions
    lengths: tuple[int, ...]
    where: Where


@final
@dataclass(frozen=True)
class Tally:
    """What a harvest cost, and how much of it were pads."""

    texts: int
    rows: int
    tokens: int
    computed: int  # tokens with their pads
    forwards: int


def harvest(  # noqa: PLR0913 - what to read, where, and how it may be watched
    model: Model,
    texts: Sequence[Text],
    sites: Selector,
    *,
    position: ReadPositions = "last",
    plan: Interventions = (),
    max_tokens: int = 2048,
    padding_side: PaddingSide = "right",
    progress: Progress | None = None,
    check: Check | None = None,
) -> Harvest:
    """The activations of each text at each site, read at one position or several, in memory.

    `position`: "last", "first" or an index (negative from the end) of each text's content tokens;
    "mean" or "max" over all of them; "all", several indices, or `Spans` for a row per token. What
    reads all leaves out the model's BOS, which carries the attention sink. Costs one forward per
    text up to the last site, and the bytes of the rows twice; `max_tokens` bounds a batch.
    `progress(done, total)` counts texts; `check` is called at every site and may raise to cancel.

    Raises:
        UnknownNameError: If the model lacks one of `sites`.
        OptionError: If a text is too short for `position`, or the plan names rows.
        NeverActedError: If an intervention acts on no text, or only after the last site.
        NonFiniteError: If a row is not finite.
    """
    reader = reader_of(
        model,
        texts,
        sites,
        position=position,
        plan=plan,
        max_tokens=max_tokens,
        padding_side=padding_side,
    )
    sink = Rows()
    _pour(reader, [sink], None if progress is None else _counted(progress), check)
    tables = sink.finish()
    rows = {site: tables[site].rows for site in reader.sites}
    return Harvest(rows, position, reader.lengths, tables[reader.sites[0]].where)


def harvest_into(  # noqa: PLR0913 - what to read, where, and how it may be watched
    sinks: Sink[object] | Sequence[Sink[object]],
    model: Model,
    texts: Sequence[Text],
    sites: Selector,
    *,
    position: ReadPositions = "last",
    plan: Interventions = (),
    max_tokens: int = 2048,
    padding_side: PaddingSide = "right",
    progress: Callable[[Pace], None] | None = None,
    check: Check | None = None,
) -> Tally:
    """Streams the activations of each text into sinks, one batch in memory at a time.

    Options as of `harvest`; `progress` is told the pace after each batch. Call `finish` of a sink
    for what came of it. Several harvests may go into one sink, or into several that are merged.

    Raises:
        OptionError: If a sink is none, or as of `harvest`.
        UnknownNameError: If the model lacks one of `sites`.
        NeverActedError: If an intervention acts on no text, or only after the last site.
        NonFiniteError: If a row is not finite; what came before it is in the sinks.
    """
    parts = sinks_of(sinks)
    reader = reader_of(
        model,
        texts,
        sites,
        position=position,
        plan=plan,
        max_tokens=max_tokens,
        padding_side=padding_side,
    )
    return _pour(reader, parts, progress, check)


def _pour(
    reader: Reader,
    sinks: Sequence[Sink[object]],
    progress: Callable[[Pace], None] | None,
    check: Check | None,
) -> Tally:
    pacer = Pacer(len(reader.ids), sum(reader.lengths), progress)
    acted, forwards, computed = [0] * len(reader.plan), 0, 0
    for chunk in reader.chunks(check=check):
        push_all(sinks, chunk.rows, chunk.where)
        acted = [before + now for before, now in zip(acted, chunk.acted, strict=True)]
        forwards, computed = forwards + 1, computed + chunk.computed
        pacer.add(len(chunk.texts), chunk.tokens)
    reader.check_acted(acted)
    return Tally(len(reader.ids), reader.n_rows, sum(reader.lengths), computed, forwards)


def _counted(progress: Progress) -> Callable[[Pace], None]:
    return lambda pace: progress(pace.done, pace.total)
