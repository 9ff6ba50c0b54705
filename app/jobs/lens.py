"""The residual stream read as words, by the library's logit lens."""

import math

import numpy as np
import torch

import workbench as wb
from app.host import Job
from app.jobs._bench import Bench, answer, prompt_ids, until, words
from app.jobs._table import Answers
from app.results import LensReading, Path
from app.specs import Lens, Trajectory
from workbench.core.protocols import Model
from workbench.core.sites import Site
from workbench.lenses import METHODS as LENSES
from workbench.lenses import LensReading as Found

METHOD = "logit_lens"
SITES = ("blocks.0.hook_resid_pre", "blocks.*.hook_resid_post")
COLUMNS = 24  # positions shown: a cell needs room for its word
TOP = 6


def lens(bench: Bench, spec: Lens, job: Job) -> LensReading:
    """One forward, and one unembedding for each row; positions in a window around the one read."""
    model = bench.model(spec.model)
    ids = prompt_ids(model, spec.prompt)
    shown = until(ids, spec.pos)
    pos = len(shown) - 1
    texts, target, _ = answer(model, bench.said(spec.model, shown, job), spec.target, spec.foil)
    window = window_of(len(ids), pos)
    found = LENSES[METHOD](
        model,
        ids[: window[-1] + 1],
        sites=SITES,
        plan=bench.plan(spec.model, spec.plan, job),
        positions=list(window),
        top_k=TOP,
        watch=[target],
        check=job.check,
    )
    column = pos - window[0]
    return LensReading(
        tokens=tuple(words(model).token_text(i) for i in ids),
        positions=tuple(window),
        layers=_layers(model),
        texts=_texts(model, found.top_tokens.tolist()),
        probs=found.top_probabilities.float().numpy(),
        entropy=found.entropy.float().numpy() / math.log(2),
        divergence=np.maximum(found.kl.float().numpy(), 0) / math.log(2),
        answer=texts,
        pos=pos,
        target_rank=_rank(found, column).numpy(),
        residual=float(found.kl[-1].abs().max()) / math.log(2),
    )


def trajectory(bench: Bench, spec: Trajectory, job: Job) -> Path:
    """Every layer at one position: one forward and an unembedding of one row per layer."""
    model = bench.model(spec.model)
    shown = until(prompt_ids(model, spec.prompt), spec.pos)
    texts, target, foil = answer(model, bench.said(spec.model, shown, job), spec.target, spec.foil)
    plan = bench.plan(spec.model, spec.plan, job)
    trace = wb.run(model, shown, plan=plan, record=SITES, positions="last", check=job.check)
    sites = list(trace)
    resid = torch.cat([trace[site][:, -1:] for site in sites], 1)  # batch layer d_model
    last = Site("blocks.{}.hook_resid_post", model.sizes.n_layers - 1)
    logits = LENSES[METHOD].logits(model, last, resid)[0].float()  # layer d_vocab
    said = logits.softmax(-1)
    rank = [(logits >= logits[:, [token]]).sum(-1) for token in (target, foil)]  # ties rank last
    return Path(
        layers=_layers(model),
        answer=texts,
        target_prob=said[:, target].numpy(),
        foil_prob=said[:, foil].numpy(),
        target_rank=rank[0].numpy(),
        foil_rank=rank[1].numpy(),
        vocabulary=model.sizes.d_vocab,
        residual=float((logits[-1] - trace.answer_logits[0].float()).abs().max()),
    )


def window_of(count: int, pos: int) -> range:
    """The positions shown: all, or a window that has the one read near its end."""
    end = min(count, max(COLUMNS, pos + 2))
    return range(max(0, end - COLUMNS), end)


def _rank(found: Found, column: int) -> torch.Tensor:
    """The watched token's rank by layer, from 1; one that ties for the first place is not first."""
    best = found.top_probabilities[:, column]
    tied = (
        best[:, 0] == best[:, 1] if best.shape[1] > 1 else torch.zeros(len(best), dtype=torch.bool)
    )
    rank = found.ranks[:, column, 0] + 1
    return torch.where((rank == 1) & tied, 2, rank)


def _layers(model: Model) -> tuple[str, ...]:
    return ("embed", *(str(layer) for layer in range(model.sizes.n_layers)))


def _texts(model: Model, ids: list[list[list[int]]]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    text = words(model).token_text
    return tuple(tuple(tuple(map(text, cell)) for cell in row) for row in ids)


ANSWERS = Answers({Lens: lens, Trajectory: trajectory})
