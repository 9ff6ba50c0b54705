"""What the model says next, with and without the plan."""

import torch

import workbench as wb
from app.host import Job
from app.jobs._bench import Bench, answer, key, prompt_ids, receipts, until, words
from app.jobs._table import Answers
from app.results import Candidate, Reading
from app.specs import Read
from workbench.core.protocols import Model

TOP = 10


def read(bench: Bench, spec: Read, job: Job) -> Reading:
    """One forward without the plan and, if there is one, one with it."""
    model = bench.model(spec.model)
    ids = prompt_ids(model, spec.prompt)
    shown = until(ids, spec.pos)
    before, milliseconds = bench.said(spec.model, shown, job), bench.milliseconds(spec.model)
    texts, target, foil = answer(model, before, spec.target, spec.foil)
    plan = bench.plan(spec.model, spec.plan, job)
    traced = wb.run(model, shown, plan=plan, positions="last", check=job.check) if plan else None
    after = before if traced is None else traced.answer_logits[0].float()
    said = after.log_softmax(-1)  # as the lens ranks: what rounds to a tie is one
    return Reading(
        tokens=tuple(words(model).token_text(i) for i in ids),
        pos=len(shown) - 1,
        answer=texts,
        before=float(before[target] - before[foil]),
        after=None if traced is None else float(after[target] - after[foil]),
        target=_candidates(model, before, after, [target])[0],
        foil=_candidates(model, before, after, [foil])[0],
        target_rank=1 + int((said > said[target]).sum()),
        foil_rank=1 + int((said > said[foil]).sum()),
        top=_candidates(model, before, after, after.topk(min(TOP, len(after))).indices.tolist()),
        entropy=float(torch.distributions.Categorical(logits=after).entropy()) / LN2,
        receipts=() if traced is None else receipts(traced),
        milliseconds=milliseconds,
        n_context=model.sizes.n_ctx,
    )


def _candidates(
    model: Model, before: torch.Tensor, after: torch.Tensor, ids: list[int]
) -> tuple[Candidate, ...]:
    old, new = before.softmax(-1), after.softmax(-1)
    return tuple(
        Candidate(
            words(model).token_text(i),
            float(new[i]),
            float(old[i]),
            float(after[i]),
            isinstance(key(words(model), i), str),
        )
        for i in ids
    )


LN2 = 0.6931471805599453
ANSWERS = Answers({Read: read})
