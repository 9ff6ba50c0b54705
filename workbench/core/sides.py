"""The two sides of an encoder–decoder model: where tokens stand depends on the stack of a site.

Notable: a batch is that of the target, and knows its source. Positions count within a side: at an
encoder's sites, and at the keys and values a decoder makes of its memory, they are the source's; at
all others the target's. Scores and patterns across have a query in the target and a key in the
source.
"""

from dataclasses import replace
from enum import Enum, auto

from workbench.core.axes import ACROSS, ENCODER, MEMORY, OF_MEMORY
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
    """Which tokens a site of an encoder–decoder model has."""

    SOURCE = auto()
    TARGET = auto()
    ACROSS = auto()  # queries of the target, keys of the source


def side_of(site: Site, model: Model) -> Side:
    """The side of a site; a model of one stack has a target only."""
    if not model.sizes.n_encoder_layers:
        return Side.TARGET
    if site.short in ACROSS:
        return Side.ACROSS
    source = site.stack == ENCODER or site.short in OF_MEMORY or site.name in OF_SOURCE
    return Side.SOURCE if source else Side.TARGET


def on_side(batch: Batch, side: Side) -> Batch:
    """The tokens of a side: those along `pos`, or `query`."""
    return batch.source if side is Side.SOURCE and batch.source is not None else batch


def place_on(batch: Batch, side: Side) -> Place:
    """Where the tokens of a side stand, for scopes."""
    place = on_side(batch, side).place
    if side is not Side.ACROSS or batch.source is None:
        return place
    source = batch.source
    real = source.real
    keys = source.positions if real is None else source.positions.masked_fill(~real, -1)
    return replace(place, keys=keys)
