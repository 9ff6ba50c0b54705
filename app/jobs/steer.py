"""Steering: a direction's worth, its dose-response, and baseline beside steered text."""

import math
import time
from collections import Counter

import numpy as np
import torch
from torch import Tensor

import workbench as wb
from app.host import Job
from app.jobs._bench import Bench, answer, prompt_ids, receipts, until, words
from app.jobs._table import Answers
from app.results import DirectionCard, DoseCurve, Quality, Receipt, TwinResult
from app.specs import Direct, Dose, Twin
from workbench.core.direction import Direction
from workbench.core.protocols import Model

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
    """The metric at every strength: one forward, a row for each, and one row without."""
    model = bench.model(spec.model)
    shown = until(prompt_ids(model, spec.prompt), spec.pos)
    texts, target, foil = answer(model, bench.said(spec.model, shown, job), spec.target, spec.foil)
    plan = bench.plan(spec.model, spec.plan, job)
    direction = bench.direction(spec.model, spec.recipe, job)
    strengths = (*spec.strengths, 0.0)  # strength 0 stands beside the row without, as the check
    steers = [direction.at(s, unit="gap", rows=[row]) for row, s in enumerate(strengths)]
    rows = [shown] * (len(strengths) + 1)
    trace = wb.run(model, rows, plan=[*plan, *steers], positions="last", check=job.check)
    logits = trace.answer_logits.float()
    *steered, zero, base = logits
    moved = torch.stack(steered)
    return DoseCurve(
        answer=texts,
        strengths=np.asarray(spec.strengths),
        metric=(moved[:, target] - moved[:, foil]).numpy(),
        divergence=_divergence(moved, base).numpy(),
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
    """The logits from which each new token was to be drawn; those of the prompt are not made."""
    drawn = range(len(ids) - 1, len(ids) + len(new) - 1)
    trace = wb.run(model, (*ids, *new), plan=plan, positions=drawn, check=job.check)
    return trace.logits[0].float()


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
    drawn = range(len(ids) - 1, len(ids) + len(new) - 1)
    trace = wb.run(model, (*ids, *new), plan=plan, positions=drawn, check=job.check)
    return trace.logits[0].float(), receipts(trace)[-1]


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
