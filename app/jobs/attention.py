"""Attention patterns: all heads small, one head exact."""

import numpy as np
import torch
from torch import Tensor

import workbench as wb
from app.host import Job
from app.jobs._bench import Bench, prompt_ids, words
from app.jobs._table import Answers
from app.results import HeadPattern, Mosaic
from app.specs import Attention, Head
from workbench.core.errors import OptionError

SIDE = 32  # cells of a tile
LARGE = 64  # positions of the head on show
WHOLE = 256  # tokens up to which all layers are recorded at once


def attention(bench: Bench, spec: Attention, job: Job) -> Mosaic:
    """Every pattern; of long prompts a layer at a time, with several positions to a cell."""
    model = bench.model(spec.model)
    ids = prompt_ids(model, spec.prompt)
    plan = bench.plan(spec.model, spec.plan, job)
    cell = -(-len(ids) // SIDE)
    tiles: list[Tensor] = []
    sinks: list[Tensor] = []
    worst = 0.0
    batch = model.sizes.n_layers if len(ids) <= WHOLE else 1
    layers = range(model.sizes.n_layers)
    for first in range(0, len(layers), batch):
        sites = [f"blocks.{layer}.attn.hook_pattern" for layer in layers[first : first + batch]]
        trace = wb.run(model, ids, plan=plan, record=sites, logits=False, check=job.check)
        for site in sites:
            pattern = trace[site][0].float()  # head query key
            tiles.append(pooled(pattern, cell))
            sinks.append(pattern[:, 1:, 0].mean(-1) if len(ids) > 1 else pattern[:, 0, 0])
            worst = max(worst, float((pattern.sum(-1) - 1).abs().max()))
        job.advance(min(first + batch, len(layers)), len(layers))
    return Mosaic(
        tokens=tuple(words(model).token_text(i) for i in ids),
        tiles=torch.stack(tiles).numpy(),
        pooled=cell,
        sink=torch.stack(sinks).numpy(),
        rowsum=worst,
    )


def head(bench: Bench, spec: Head, job: Job) -> HeadPattern:
    """One head's pattern; of a long prompt the last positions.

    Raises:
        OptionError: If the model has no such head.
    """
    model = bench.model(spec.model)
    if not 0 <= spec.layer < model.sizes.n_layers or not 0 <= spec.head < model.sizes.n_heads:
        allowed = f"layer 0…{model.sizes.n_layers - 1}, head 0…{model.sizes.n_heads - 1}"
        raise OptionError("head", allowed, f"L{spec.layer}H{spec.head}")
    ids = prompt_ids(model, spec.prompt)
    plan = bench.plan(spec.model, spec.plan, job)
    site = f"blocks.{spec.layer}.attn.hook_pattern"
    trace = wb.run(model, ids, plan=plan, record=[site], logits=False, check=job.check)
    first = max(0, len(ids) - LARGE)
    text = words(model).token_text
    return HeadPattern(
        tokens=tuple(map(text, ids[first:])),
        layer=spec.layer,
        head=spec.head,
        pattern=np.ascontiguousarray(trace[site][0, spec.head, first:, first:].float().numpy()),
        first=first,
    )


def pooled(pattern: Tensor, cell: int) -> Tensor:
    """Patterns with `cell` x `cell` positions to a cell, each the largest of its positions."""
    if cell == 1:
        return pattern
    return torch.nn.functional.max_pool2d(pattern[None], cell, cell, ceil_mode=True)[0]


ANSWERS = Answers({Attention: attention, Head: head})
