"""Attention patterns: all heads small, one head exact."""

from typing import final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

import workbench as wb
from app.host import Job
from app.jobs._bench import Bench, prompt_ids, until, words
from app.jobs._table import Answers
from app.results import HeadPattern, Mosaic
from app.specs import LARGE, Attention, Head
from workbench.core.errors import OptionError
from workbench.core.sites import Site
from workbench.core.tap import Tap

SIDE = 32  # cells of a tile
KEYS = 7  # strongest keys of a query: six, and the sink
PATTERN = "attn.hook_pattern"


def attention(bench: Bench, spec: Attention, job: Job) -> Mosaic:
    """Every pattern in one forward; of long prompts with several positions to a cell."""
    model = bench.model(spec.model)
    ids = prompt_ids(model, spec.prompt)
    pooler = Pooler(-(-len(ids) // SIDE), model.sizes.n_layers, job)
    plan = bench.plan(spec.model, spec.plan, job)
    wb.run(model, ids, plan=plan, positions="last", tap=pooler, check=job.check)
    return Mosaic(
        tokens=tuple(words(model).token_text(i) for i in ids),
        tiles=torch.stack(pooler.tiles).numpy(),
        besides=torch.stack(pooler.besides).numpy(),
        pooled=pooler.cell,
        sink=torch.stack(pooler.sinks).numpy(),
        rowsum=pooler.worst,
    )


def head(bench: Bench, spec: Head, job: Job) -> HeadPattern:
    """One head's pattern; of a long prompt the window of positions that ends at the one read.

    Raises:
        OptionError: If the model has no such head.
    """
    model = bench.model(spec.model)
    if not 0 <= spec.layer < model.sizes.n_layers or not 0 <= spec.head < model.sizes.n_heads:
        allowed = f"layer 0…{model.sizes.n_layers - 1}, head 0…{model.sizes.n_heads - 1}"
        raise OptionError("head", allowed, f"L{spec.layer}H{spec.head}")
    ids = prompt_ids(model, spec.prompt)
    plan = bench.plan(spec.model, spec.plan, job)
    site = f"blocks.{spec.layer}.{PATTERN}"
    trace = wb.run(model, ids, plan=plan, record=[site], logits=False, check=job.check)
    end = min(len(ids), max(LARGE, len(until(ids, spec.pos))))
    first = max(0, end - LARGE)
    window = trace[site][0, spec.head, first:end].float()  # query key
    best = window.topk(min(KEYS, len(ids)))
    text = words(model).token_text
    return HeadPattern(
        tokens=tuple(map(text, ids[first:end])),
        layer=spec.layer,
        head=spec.head,
        pattern=np.ascontiguousarray(window[:, first:end].numpy()),
        first=first,
        length=len(ids),
        keys=best.indices.numpy(),
        shares=best.values.numpy(),
        key_texts=tuple(tuple(text(ids[k]) for k in row) for row in best.indices.tolist()),
    )


@final
class Pooler(Tap):
    """Keeps every layer's patterns small, as they pass: those of a long prompt would not fit.

    Of `cell` x `cell` positions the largest is kept, since a mean would hide the spikes.
    """

    def __init__(self, cell: int, layers: int, job: Job) -> None:
        self.cell, self.tiles, self.besides = cell, list[Tensor](), list[Tensor]()
        self.sinks, self.worst = list[Tensor](), 0.0
        self._layers, self._job = layers, job

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site.short == PATTERN:
            pattern = value[0].float()  # head query key
            self.tiles.append(pooled(pattern, self.cell))
            self.besides.append(pooled(besides(pattern), self.cell))
            self.sinks.append(
                pattern[:, 1:, 0].mean(-1) if len(pattern[0]) > 1 else pattern[:, 0, 0]
            )
            self.worst = max(self.worst, float((pattern.sum(-1) - 1).abs().max()))
            self._job.advance(len(self.tiles), self._layers)
        return value

    @override
    def wants(self, site: Site) -> bool:
        return site.short == PATTERN


def besides(pattern: Tensor) -> Tensor:
    """Patterns without the attention to the first token, before anything is pooled with it."""
    return torch.nn.functional.pad(pattern[..., 1:], (1, 0))


def pooled(pattern: Tensor, cell: int) -> Tensor:
    """Patterns with `cell` x `cell` positions to a cell, each the largest of its positions."""
    if cell == 1:
        return pattern
    return torch.nn.functional.max_pool2d(pattern[None], cell, cell, ceil_mode=True)[0]


ANSWERS = Answers({Attention: attention, Head: head})
