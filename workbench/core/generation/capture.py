"""Activations that made a text: one entry per position of prompt and generation, row by row.

Notable: rows differ in length, so each has a tensor of its own, without pads. Scores and patterns
grow a key with every token; they are given as a run over the finished text has them, a square.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.axes import SCORES
from workbench.core.data import Batch
from workbench.core.modes import outside_inference
from workbench.core.protocols import Model
from workbench.core.sides import Side, on_side, side_of
from workbench.core.sites import Selector, Site, Sites, select
from workbench.core.tap import Recorder

Captured = tuple[Float[Tensor, "..."], ...]


def captured_sites(record: Selector, model: Model) -> Sites:
    """The sites to record; none for an empty selection."""
    if isinstance(record, Sequence) and not len(record):
        return ()
    return select(record, model.sites)


@final
class Capture:
    """What the passes of one generation left at some sites."""

    def __init__(self, sites: Sites, rows: int, model: Model) -> None:
        self.sites, self._sides = sites, {site: side_of(site, model) for site in sites}
        # So that passes must tell where keys stand.
        self.keyed = any(_has_keys(s) and self._sides[s] is not Side.ACROSS for s in sites)
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
            if batch.encoded and site not in seen:  # an encoder's, whose pass is over
                continue
            for row, parts in enumerate(self._kept[site]):
                if rows is None or row in rows:
                    at = 0 if rows is not None else row
                    parts.append(self._part(site, seen[site], batch, at))

    def _part(self, site: Site, value: Tensor, batch: Batch, row: int) -> Tensor:
        """What a pass left of one row at a site."""
        side = self._sides[site]
        if side is Side.ACROSS:
            return _across(value, batch, row)
        if _has_keys(site):
            return _square(value, on_side(batch, side), row)
        return _flat(value, on_side(batch, side), row)

    @outside_inference
    def found(self) -> dict[Site, Captured]:
        """By site, one tensor per row: its positions, then the axes of the site.

        Scores and patterns are (head query key), with as many keys as queries, or, across, as the
        source has. What is beyond a query's own position is -inf or 0, whatever a plan wrote there:
        nobody reads it.
        """
        return {
            site: tuple(self._whole(site, parts) for parts in kept)
            for site, kept in self._kept.items()
        }

    def _whole(self, site: Site, parts: Sequence[Tensor]) -> Tensor:
        if self._sides[site] is Side.TARGET and _has_keys(site):
            return _joined(parts, site)
        return torch.cat(list(parts), 1 if _has_keys(site) else 0)


def _has_keys(site: Site) -> bool:
    return site.axes[-1] == "key"


def _flat(value: Tensor, batch: Batch, row: int) -> Float[Tensor, "pos ..."]:
    """What a pass left of one row."""
    return value[row] if batch.real is None else value[row][batch.real[row]]


def _square(value: Tensor, batch: Batch, row: int) -> Float[Tensor, "head query key"]:
    """The same at a site with keys, which are those of all passes so far."""
    own = value[row] if batch.real is None else value[row][:, batch.real[row]]
    if batch.keys is not None:
        return own[..., batch.keys[row] >= 0]
    return own if batch.real is None else own[..., batch.real[row]]  # all keys are of this pass


def _across(value: Tensor, batch: Batch, row: int) -> Float[Tensor, "head query key"]:
    """What a pass left of one row's queries, with the tokens of its source as keys."""
    own = value[row] if batch.real is None else value[row][:, batch.real[row]]
    real = None if batch.source is None else batch.source.real
    return own if real is None else own[..., real[row]]


def _joined(parts: Sequence[Tensor], site: Site) -> Float[Tensor, "head query key"]:
    """The parts of one row one below another, each as wide as the last."""
    n = sum(part.shape[1] for part in parts)
    fill = float("-inf") if site.short in SCORES else 0.0
    wide = [torch.nn.functional.pad(part, (0, n - part.shape[2]), value=fill) for part in parts]
    whole = torch.cat(wide, 1)
    ahead = torch.ones(n, n, dtype=torch.bool, device=whole.device).triu(1)
    return whole.masked_fill(ahead, fill)
