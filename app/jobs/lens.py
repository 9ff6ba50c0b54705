"""The residual stream read as words, by the library's logit lens."""

import math

import numpy as np
import torch

from app.host import Job
from app.jobs._bench import Bench, answer, prompt_ids, until, words
from app.jobs._table import Answers
from app.results import LensReading, Path
from app.specs import Lens, Trajectory
from workbench.core.protocols import Model
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
        target_rank=(found.ranks[:, column, 0] + 1).numpy(),
        target_alone=_alone(found, column).numpy(),
        residual=float(found.kl[-1].abs().max()) / math.log(2),
    )


def trajectory(bench: Bench, spec: Trajectory, job: Job) -> Path:
    """Every layer at one position: one forward and an unembedding of one row per layer."""
    model = bench.model(spec.model)
    shown = until(prompt_ids(model, spec.prompt), spec.pos)
    texts, target, foil = answer(model, bench.said(spec.model, shown, job), spec.target, spec.foil)
    found = LENSES[METHOD](
        model,
        shown,
        sites=SITES,
        plan=bench.plan(spec.model, spec.plan, job),
        positions="last",
        top_k=TOP,
        watch=[target, foil],
        check=job.check,
    )
    probs, ranks = found.watched[:, 0].float(), found.ranks[:, 0] + 1  # layer token
    return Path(
        layers=_layers(model),
        answer=texts,
        target_prob=probs[:, 0].numpy(),
        foil_prob=probs[:, 1].numpy(),
        target_rank=ranks[:, 0].numpy(),
        foil_rank=ranks[:, 1].numpy(),
        target_alone=_alone(found, 0).numpy(),
        vocabulary=model.sizes.d_vocab,
        residual=float(found.kl[-1].abs().max()) / math.log(2),
    )


def window_of(count: int, pos: int) -> range:
    """The positions shown: all, or a window that has the one read near its end."""
    end = min(count, max(COLUMNS, pos + 2))
    return range(max(0, end - COLUMNS), end)


def _alone(found: Found, column: int) -> torch.Tensor:
    """Whether the watched token is the likeliest by layer, and no other as likely."""
    best = found.top_probabilities[:, column]  # layer rank
    tied = (best[:, 1:2] == best[:, :1]).any(-1)  # a vocabulary of one word ties with nothing
    return (found.ranks[:, column, 0] == 0) & ~tied


def _layers(model: Model) -> tuple[str, ...]:
    return ("embed", *(str(layer) for layer in range(model.sizes.n_layers)))


def _texts(model: Model, ids: list[list[list[int]]]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    text = words(model).token_text
    return tuple(tuple(tuple(map(text, cell)) for cell in row) for row in ids)


ANSWERS = Answers({Lens: lens, Trajectory: trajectory})
