"""The residual stream read as words, by the library's logit lens."""

import math

import numpy as np
import workbench as wb
from workbench.core.protocols import Model
from workbench.lenses import METHODS as LENSES

from app.host import Job
from app.jobs._bench import Bench, answer, prompt_ids, until, words
from app.jobs._planned import Planned
from app.jobs._table import Answers
from app.results import LensReading
from app.specs import Lens

COLUMNS = 24  # positions shown: a cell needs room for its word
TOP = 6


def lens(bench: Bench, spec: Lens, job: Job) -> LensReading:
    """One forward, and one unembedding for each row; positions in a window around the one read."""
    model = bench.model(spec.model)
    ids = prompt_ids(model, spec.prompt)
    pos = len(until(ids, spec.pos)) - 1
    base = wb.run(model, ids[: pos + 1], positions="last", check=job.check).answer_logits[0]
    texts, target, foil = answer(model, base.float(), spec.target, spec.foil)
    plan = bench.plan(spec.model, spec.plan, job)
    window = window_of(len(ids), pos)
    found = LENSES["logit_lens"](
        model,
        ids[: window[-1] + 1],
        sites=["blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"],
        plan=plan,
        top_k=TOP,
        watch=[target, foil],
        check=job.check,
    )
    under = Planned(model, plan)
    final = wb.run(under, ids[: pos + 1], positions="last", check=job.check).answer_logits[0]
    said = final.float().softmax(-1)[[target, foil]]
    columns = list(window)
    watched, ranks = found.watched[:, pos].float().numpy(), found.ranks[:, pos].numpy()
    return LensReading(
        tokens=tuple(words(model).token_text(i) for i in ids),
        positions=tuple(window),
        layers=("embed", *(str(layer) for layer in range(model.sizes.n_layers))),
        texts=_texts(model, found.top_tokens[:, columns].tolist()),
        probs=found.top_probabilities[:, columns].float().numpy(),
        entropy=found.entropy[:, columns].float().numpy() / math.log(2),
        divergence=np.maximum(found.kl[:, columns].float().numpy(), 0) / math.log(2),
        answer=texts,
        pos=pos,
        target_prob=watched[:, 0],
        foil_prob=watched[:, 1],
        target_rank=ranks[:, 0] + 1,
        foil_rank=ranks[:, 1] + 1,
        residual=float((found.watched[-1, pos].float() - said).abs().max()),
    )


def window_of(count: int, pos: int) -> range:
    """The positions shown: all, or a window that has the one read near its end."""
    end = min(count, max(COLUMNS, pos + 2))
    return range(max(0, end - COLUMNS), end)


def _texts(model: Model, ids: list[list[list[int]]]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    text = words(model).token_text
    return tuple(tuple(tuple(map(text, cell)) for cell in row) for row in ids)


ANSWERS = Answers({Lens: lens})
