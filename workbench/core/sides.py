"""The two sides of a model of two stacks or streams: where tokens stand depends on the site.

Notable: a batch is that of the target, and knows its source. Positions count within a side: at an
encoder's sites, and at the keys and values a decoder makes of its memory, they are the source's; at
all others the target's. Scores and patterns across have a query in the target and a key in the
source. So it is with a content stream (the source) and a query stream, whose columns are targets.
"""

from dataclasses import replace
from enum import Enum, auto

from workbench.core.axes import (
    ACROSS,
    BLOCKS,
    ENCODER,
    MEMORY,
    OF_MEMORY,
    QUERY,
    QUERY_EMBED,
    SQUARES,
)
from workbench.core.data import Batch
from workbench.core.protocols import Model
from workbench.core.sites import Site
from workbench.core.standing import Place

OF_SOURCE = frozenset(
    {
        "hook_embed",
        "hook_pos_embed",
        "embed.ln.hook_scale",
        "embed.ln.hook_normalized",
        "encoder_final_ln.hook_scale",
        "encoder_final_ln.hook_normalized",
        MEMORY,
    }
)


class Side(Enum):
    """Which tokens a site has, of a model of two stacks or streams."""

    SOURCE = auto()
    TARGET = auto()
    ACROSS = auto()  # queries of the target, keys of the source


def side_of(site: Site, model: Model) -> Side:
    """The side of a site; a model of one stack has a target only."""
    if model.sizes.predicts:
        return _of_stream(site)
    if not model.sizes.n_encoder_layers:
        return Side.TARGET
    if site.short in ACROSS:
        return Side.ACROSS
    source = site.stack == ENCODER or site.short in OF_MEMORY or site.name in OF_SOURCE
    return Side.SOURCE if source else Side.TARGET


def _of_stream(site: Site) -> Side:
    """The side of a site where there is a query stream: the content's is the source."""
    if site.stack == QUERY:
        return Side.ACROSS if site.short in SQUARES else Side.TARGET
    content = site.stack == BLOCKS or site.name in OF_SOURCE
    return Side.SOURCE if content and site.name != QUERY_EMBED else Side.TARGET


def on_side(batch: Batch, side: Side) -> Batch:
    """The tokens of a side: those along `pos`, or `query`."""
    return batch.source if side is Side.SOURCE and batch.source is not None else batch


def place_on(batch: Batch, side: Side) -> Place:
    """Where the tokens of a side stand, for scopes."""
    place = on_side(batch, side).place
    if side is not Side.ACROSS or batch.source is None:
        return place
    source = batch.source
    if source.place.keys is not None:
        return replace(place, keys=source.place.keys)
    real = source.real
    keys = source.positions if real is None else source.positions.masked_fill(~real, -1)
    return replace(place, keys=keys)
