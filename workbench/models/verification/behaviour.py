"""Whether a model behaves: alike in batches and alone, cached and not, its slopes those it has."""

import torch
from torch import Tensor

from workbench.core.generate import generate
from workbench.core.gradients import gradients
from workbench.core.run import run
from workbench.models.transformer import Transformer
from workbench.models.verification.parity import worst
from workbench.models.verification.report import Measured
from workbench.models.verification.subject import NEW, NotApplicableError, Subject, in_dtype

STEP = 1e-5  # of a stream's own size: what rounds and what curves are both far below SLOPE
SLOPE = 1e-5
DIRECTIONS = 3


def padding(subject: Subject) -> Measured:
    """Rows of several lengths in one batch, padded on either side, against each alone."""
    rows = [list(row) for row in subject.rows]
    alone = [trace.logits[0] for trace in subject.plain]
    together = [run(subject.ours, rows, padding_side=side) for side in ("left", "right")]
    return worst(
        (
            (_real(trace.logits[place], trace.batch.real, place), alone[place])
            for trace in together
            for place in range(len(rows))
        ),
        "logits",
    )


def _real(logits: Tensor, real: Tensor | None, row: int) -> Tensor:
    return logits if real is None else logits[real[row]]


def cached(subject: Subject) -> Measured:
    """Greedy text with a cache and without: how far log-probabilities are apart.

    Raises:
        NotApplicableError: If it does not write.
    """
    ours = subject.ours
    if not ours.causal:
        message = "it reads both ways, and does not write"
        raise NotApplicableError(message)
    rows = [list(row) for row in subject.rows]
    kept = generate(ours, rows, max_new_tokens=NEW)
    anew = generate(ours, rows, max_new_tokens=NEW, use_cache=False)
    other = sum(a != b for a, b in zip(kept.tokens, anew.tokens, strict=True))
    note = f"{sum(map(len, kept.tokens))} tokens in {len(rows)} rows"
    if other:
        return Measured(float("inf"), 1e-4, "nats", f"{other} of {len(rows)} rows are another text")
    pairs = zip(kept.log_probabilities, anew.log_probabilities, strict=True)
    apart = [abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True)]
    return Measured(max(apart, default=0.0), 1e-4, "nats", note)


def slopes(subject: Subject) -> Measured:
    """Gradients in float64 against finite differences, along a few directions.

    The error of each is in parts of what a direction of its length would do on average, or of what
    it does, if that is more. One direction is the gradient's own.
    """
    model = in_dtype(subject.model, torch.float64)
    row = [list(max(subject.rows, key=len))]
    stream = subject.having("hook_resid_pre")[0]
    begun = run(model, row, record=stream, logits=False)[stream]
    draws = torch.Generator().manual_seed(0)
    weights = torch.randn(model.sizes.d_vocab, generator=draws, dtype=torch.float64)
    weights = weights.to(model.device) / model.sizes.d_vocab**0.5
    slope = gradients(model, row, stream, lambda logits: logits @ weights)[stream]
    directions = [slope, *(_noise(begun, draws) for _ in range(DIRECTIONS - 1))]
    errors = [_error(model, row, begun, slope, way, weights) for way in directions]
    return Measured(max(errors), SLOPE, "relative", f"{DIRECTIONS} directions in float64")


def _noise(like: Tensor, draws: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draws, dtype=like.dtype).to(like.device)


def _error(
    model: Transformer,
    row: list[list[int]],
    begun: Tensor,
    slope: Tensor,
    way: Tensor,
    weights: Tensor,
) -> float:
    step = STEP * begun.norm() / way.norm() * way
    ahead, behind = (
        run(model, row, start=(0, begun + sign * step), positions="last").answer_logits[0] @ weights
        for sign in (1, -1)
    )
    found, expected = float(ahead - behind) / 2, float((slope * step).sum())
    usual = float(slope.norm() * step.norm()) / step.numel() ** 0.5
    return abs(found - expected) / max(abs(expected), usual)


def round_trip(subject: Subject) -> Measured:
    """How many texts their tokens decode to neither exactly nor to a text of the same tokens.

    Vocabularies that fold case or blanks give another text, of the same tokens.

    Raises:
        NotApplicableError: If it has no tokenizer.
    """
    tokenizer = subject.model.tokenizer
    if tokenizer is None:
        message = "it was loaded without a tokenizer"
        raise NotApplicableError(message)
    changed: list[str] = []
    for text in subject.texts:
        ids = tokenizer.encode(text, special=False)
        back = tokenizer.decode(ids)
        if back != text and tokenizer.encode(back, special=False) != ids:
            changed.append(text)
    note = f"of {len(subject.texts)} texts" + (f", {changed[0]!r} first" if changed else "")
    return Measured(len(changed), 0, "texts", note)
