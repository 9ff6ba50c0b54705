"""Whether a model behaves: alike in batches and alone, cached and not, its slopes those it has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workbench.core.data import Batch, PaddingSide
from workbench.core.generate import generate
from workbench.core.gradients import gradients
from workbench.core.interventions import Intervention
from workbench.core.operators import Set
from workbench.core.run import run
from workbench.core.sites import Site
from workbench.models.transformer import Transformer
from workbench.models.verification.parity import worst
from workbench.models.verification.report import Measured
from workbench.models.verification.subject import NEW, NotApplicableError, Subject, in_dtype

Streams = Mapping[Site, Tensor]
STEP = 1e-5  # of a stream's own size: what rounds and what curves are both far below SLOPE
SLOPE = 1e-5
DIRECTIONS = 3


def padding(subject: Subject) -> Measured:
    """Rows of several lengths in one batch, padded on either side, against each alone."""
    places = range(len(subject.rows))
    sides: tuple[PaddingSide, PaddingSide] = ("left", "right")
    alone = [trace.logits[0] for trace in subject.plain]
    together = [run(subject.ours, subject.batch(*places, side=side)) for side in sides]
    return worst(
        (
            (_real(trace.logits[place], trace.batch.real, place), alone[place])
            for trace in together
            for place in places
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
    target = subject.targets
    kept = generate(ours, rows, target=target, max_new_tokens=NEW)
    anew = generate(ours, rows, target=target, max_new_tokens=NEW, use_cache=False)
    other = sum(a != b for a, b in zip(kept.tokens, anew.tokens, strict=True))
    note = f"{sum(map(len, kept.tokens))} tokens in {len(rows)} rows"
    if other:
        return Measured(float("inf"), 1e-4, "nats", f"{other} of {len(rows)} rows are another text")
    pairs = zip(kept.log_probabilities, anew.log_probabilities, strict=True)
    apart = [abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True)]
    return Measured(max(apart, default=0.0), 1e-4, "nats", note)


def slopes(subject: Subject) -> Measured:
    """Gradients in float64 against finite differences, along a few directions.

    At the stream before the first block, or the first ones of two stacks; of a fixed mix of what
    is said at the last token. The error of each is in parts of what a direction of its length would
    do on average, or of what it does, if that is more. One direction is the gradient's own.
    """
    model = in_dtype(subject.model, torch.float64)
    longest = max(range(len(subject.rows)), key=lambda place: len(subject.rows[place]))
    batch = subject.batch(longest, answer=-1)
    streams = tuple(site for site in subject.having("hook_resid_pre") if site.layer == 0)
    draws = torch.Generator().manual_seed(0)
    weights = torch.randn(model.sizes.d_out, generator=draws, dtype=torch.float64)
    weights = weights.to(model.device) / model.sizes.d_out**0.5
    slope = gradients(model, batch, streams, lambda logits: logits @ weights)
    begun = run(model, batch, record=streams, logits=False)
    point = _Point(model, batch, {site: begun[site] for site in streams}, slope, weights)
    first = slope if _norm(slope) else point.begun  # any, where nothing is said to change
    directions = [first, *(_noise(point.begun, draws) for _ in range(DIRECTIONS - 1))]
    errors = [point.error(way) for way in directions]
    return Measured(max(errors), SLOPE, "relative", f"{DIRECTIONS} directions in float64")


def _noise(like: Streams, draws: torch.Generator) -> Streams:
    return {
        site: torch.randn(value.shape, generator=draws, dtype=value.dtype).to(value.device)
        for site, value in like.items()
    }


def _norm(streams: Streams) -> float:
    return math.hypot(*(float(value.norm()) for value in streams.values()))


@final
@dataclass(frozen=True, eq=False)
class _Point:
    """Where a model is differentiated: its first streams, the slope there, and of what."""

    model: Transformer
    batch: Batch
    begun: Streams
    slope: Streams
    weights: Tensor

    def error(self, way: Streams) -> float:
        """How far the slope along a direction is from the difference of two runs."""
        size = STEP * _norm(self.begun) / _norm(way)
        ahead, behind = (self._said(way, sign * size) for sign in (1, -1))
        steps = (float((self.slope[site] * way[site]).sum()) for site in way)
        found, expected = (ahead - behind) / 2, size * sum(steps)
        usual = _norm(self.slope) * size * _norm(way)
        usual /= sum(value.numel() for value in way.values()) ** 0.5
        whole = max(abs(expected), usual)
        return abs(found - expected) / whole if whole else math.inf

    def _said(self, way: Streams, size: float) -> float:
        moved = [Intervention(str(site), Set(self.begun[site] + size * way[site])) for site in way]
        trace = run(self.model, self.batch, plan=moved, positions="answer")
        return float(trace.answer_logits[0] @ self.weights)


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
