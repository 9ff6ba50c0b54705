"""Steering: a direction's worth, its dose-response, and baseline beside steered text."""

import math
import time
from collections import Counter

import numpy as np
import torch
import workbench as wb
from torch import Tensor
from workbench.core.direction import Direction
from workbench.core.protocols import Model

from app.host import Job
from app.jobs._bench import Bench, answer, prompt_ids, receipts, until, words
from app.jobs._table import Answers
from app.results import DirectionCard, DoseCurve, Quality, Receipt, TwinResult
from app.specs import Direct, Dose, Twin

PHRASE = 4  # tokens of a phrase that counts as repeated
TWICE = 3  # how often it must come


def direct(bench: Bench, spec: Direct, job: Job) -> DirectionCard:
    """What the direction of a recipe is worth; one forward per text."""
    found = bench.direction(spec.model, spec.recipe, job)
    return DirectionCard(
        site=str(found.site),
        gap=found.gap,
        relative=found.gap / found.norm,
        count=len(spec.recipe.positive) + len(spec.recipe.negative),
        quality=tuple(Quality(c.name, c.value, c.unit, c.note) for c in found.checks),
    )


def dose(bench: Bench, spec: Dose, job: Job) -> DoseCurve:
    """The metric at every strength: one forward, a row for each."""
    model = bench.model(spec.model)
    shown = until(prompt_ids(model, spec.prompt), spec.pos)
    plan = bench.plan(spec.model, spec.plan, job)
    direction = bench.direction(spec.model, spec.recipe, job)
    plain = wb.run(model, shown, positions="last", check=job.check).answer_logits[0].float()
    texts, target, foil = answer(model, plain, spec.target, spec.foil)
    base = wb.run(model, shown, plan=plan, positions="last", check=job.check).answer_logits[0]
    rows = []
    for index, strength in enumerate(spec.strengths):
        steer = direction.at(strength, unit="gap")
        trace = wb.run(model, shown, plan=[*plan, steer], positions="last", check=job.check)
        rows.append(trace.answer_logits[0].float())
        job.advance(index + 1, len(spec.strengths))
    logits = torch.stack(rows)
    difference = (logits[:, target] - logits[:, foil]).numpy()
    zero = wb.run(model, shown, plan=[*plan, direction.at(0.0)], positions="last").answer_logits[0]
    return DoseCurve(
        answer=texts,
        strengths=np.asarray(spec.strengths),
        metric=difference,
        divergence=_divergence(logits, base.float()).numpy(),
        base=float(base[target] - base[foil]),
        zero=float((zero - base).abs().max()),
    )


def twin(bench: Bench, spec: Twin, job: Job) -> TwinResult:
    """Both continuations as one batch of two with the same noise; then the model reads them."""
    model = bench.model(spec.model)
    ids = prompt_ids(model, spec.prompt)
    fixed = bench.plan(spec.model, spec.plan, job)
    direction = bench.direction(spec.model, spec.recipe, job)
    started = time.perf_counter()
    written = _write(model, ids, fixed, direction, spec, job)
    seconds = time.perf_counter() - started
    base, steered = (tuple(row) for row in written)
    plain = _logits(model, ids, steered, fixed, job)
    pushed, receipt = _steered_logits(model, ids, steered, fixed, direction, spec.strength, job)
    text = words(model).token_text
    return TwinResult(
        prompt=spec.prompt,
        base=tuple(map(text, base)),
        steered=tuple(map(text, steered)),
        divergence=_divergence(pushed, plain).numpy(),
        base_perplexity=_perplexity(_logits(model, ids, base, fixed, job), base),
        steered_perplexity=_perplexity(plain, steered),
        receipt=receipt,
        identical=base == steered,
        repeats=repeated(tuple(map(text, steered))),
        seconds=seconds,
    )


def _write(
    model: Model,
    ids: tuple[int, ...],
    fixed: wb.Plan,
    direction: Direction,
    spec: Twin,
    job: Job,
) -> tuple[list[int], list[int]]:
    """The tokens of both rows, published as they come."""
    rows: tuple[list[int], list[int]] = ([], [])
    pieces = wb.generate(
        model,
        [ids, ids],
        plan=[*fixed, direction.at(spec.strength, unit="gap", rows=[1])],
        max_new_tokens=spec.new_tokens,
        temperature=spec.temperature,
        seed=[spec.seed, spec.seed],
        stream=True,
        check=job.check,
    )
    for piece in pieces:
        if piece.token is not None:
            rows[piece.row].append(piece.token)
        job.publish([piece.row, piece.text])
        job.advance(max(map(len, rows)), spec.new_tokens)
    return rows


def _logits(
    model: Model, ids: tuple[int, ...], new: tuple[int, ...], plan: wb.Plan, job: Job
) -> Tensor:
    """The logits from which each new token was to be drawn."""
    trace = wb.run(model, (*ids, *new), plan=plan, check=job.check)
    return trace.logits[0, len(ids) - 1 : -1].float()


def _steered_logits(  # noqa: PLR0913 - what was run, and how strongly
    model: Model,
    ids: tuple[int, ...],
    new: tuple[int, ...],
    fixed: wb.Plan,
    direction: Direction,
    strength: float,
    job: Job,
) -> tuple[Tensor, Receipt]:
    plan = [*fixed, direction.at(strength, unit="gap")]
    trace = wb.run(model, (*ids, *new), plan=plan, check=job.check)
    return trace.logits[0, len(ids) - 1 : -1].float(), receipts(trace)[-1]


def _perplexity(logits: Tensor, tokens: tuple[int, ...]) -> float:
    said = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
    return math.exp(-float(said.mean()))


def _divergence(logits: Tensor, plain: Tensor) -> Tensor:
    """KL(steered || plain), in bits, row by row."""
    pushed, said = logits.log_softmax(-1), plain.log_softmax(-1)
    return (pushed.exp() * (pushed - said)).sum(-1).clamp(min=0) / math.log(2)


def repeated(tokens: tuple[str, ...]) -> tuple[str, int] | None:
    """The phrase of four tokens that comes most often, if it comes three times or more."""
    phrases = Counter(tokens[i : i + PHRASE] for i in range(len(tokens) - PHRASE + 1))
    if not phrases:
        return None
    phrase, count = phrases.most_common(1)[0]
    return ("".join(phrase), count) if count >= TWICE else None


ANSWERS = Answers({Direct: direct, Dose: dose, Twin: twin})
