"""Activations that made a text: one entry per position of prompt and generation, row by row.

Notable: rows differ in length, so each has a tensor of its own, without pads.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.protocols import Model
from workbench.core.sites import Selector, Site, Sites, select
from workbench.core.tap import Recorder

Captured = tuple[Float[Tensor, "..."], ...]


def captured_sites(record: Selector, model: Model) -> Sites:
    """The sites to record; none for an empty selection.

    Raises:
        OptionError: If one has keys, whose number grows with each token.
    """
    if isinstance(record, Sequence) and not len(record):
        return ()
    sites = select(record, model.sites)
    keyed = [str(site) for site in sites if site.axes[1] != "pos"]
    if keyed:
        why = "without sites whose keys grow with every token; run the finished text for those"
        raise OptionError("record", why, keyed)
    return sites


@final
class Capture:
    """What the passes of one generation left at some sites."""

    def __init__(self, sites: Sites, rows: int) -> None:
        self.sites = sites
        self._kept: dict[Site, list[list[Tensor]]] = {s: [[] for _ in range(rows)] for s in sites}

    def begin(self) -> Recorder:
        """The tap of one pass."""
        return Recorder(self.sites)

    def forget(self) -> None:
        """Drops all that was kept: a run without a cache makes everything anew."""
        for kept in self._kept.values():
            for parts in kept:
                parts.clear()

    def keep(self, recorder: Recorder, batch: Batch, rows: Sequence[int] | None = None) -> None:
        """Takes the real tokens of a pass; a pass of one row may stand for several `rows`."""
        seen = recorder.recorded()
        for site in self.sites:
            value = seen[site]
            for row, parts in enumerate(self._kept[site]):
                if rows is None or row in rows:
                    at = 0 if rows is not None else row
                    real = None if batch.real is None else batch.real[at]
                    parts.append(value[at] if real is None else value[at][real])

    def found(self) -> dict[Site, Captured]:
        """By site, one tensor per row: its positions, then the axes of the site."""
        return {site: tuple(map(torch.cat, kept)) for site, kept in self._kept.items()}
