"""Activations that made a text: one entry per position of prompt and generation, row by row.

Notable: rows differ in length, so each has a tensor of its own, without pads. Scores and patterns
grow a key with every token; they are given as a run over the finished text has them, a square.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.data import Batch
from workbench.core.modes import outside_inference
from workbench.core.protocols import Model
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

    def __init__(self, sites: Sites, rows: int) -> None:
        self.sites = sites
        self.keyed = any(map(_has_keys, sites))  # so that passes must tell where keys stand
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
            for row, parts in enumerate(self._kept[site]):
                if rows is None or row in rows:
                    at = 0 if rows is not None else row
                    parts.append((_square if _has_keys(site) else _flat)(seen[site], batch, at))

    @outside_inference
    def found(self) -> dict[Site, Captured]:
        """By site, one tensor per row: its positions, then the axes of the site.

        Scores and patterns are (head query key), with as many keys as queries. What is beyond a
        query's own position is -inf or 0, whatever a plan wrote there: nobody reads it.
        """
        return {
            site: tuple(
                _joined(parts, site) if _has_keys(site) else torch.cat(parts) for parts in kept
            )
            for site, kept in self._kept.items()
        }


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


def _joined(parts: Sequence[Tensor], site: Site) -> Float[Tensor, "head query key"]:
    """The parts of one row one below another, each as wide as the last."""
    n = sum(part.shape[1] for part in parts)
    fill = float("-inf") if site.short == "attn.hook_attn_scores" else 0.0
    wide = [torch.nn.functional.pad(part, (0, n - part.shape[2]), value=fill) for part in parts]
    whole = torch.cat(wide, 1)
    ahead = torch.ones(n, n, dtype=torch.bool, device=whole.device).triu(1)
    return whole.masked_fill(ahead, fill)
