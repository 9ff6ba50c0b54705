"""Steer: how far a direction holds its texts apart, what it does to the metric and the text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from app.results import Answer, DirectionCard, DoseCurve, TwinResult
from app.state import MOST_GAPS, Edit, Investigation, Recipe, Steering
from app.views.code import direction, script
from app.views.figures import Array, Check, Foot, Line, Lines, Table, View
from app.views.words import (
    Sentence,
    percent,
    plain,
    round_ticks,
    say,
    shown,
    signed,
    strong,
    times,
    tiny,
    token,
)

QUESTION = say("What does steering change, and at what price?")
STEP = 0.25  # gaps
_STEPS = round(MOST_GAPS / STEP)
STRENGTHS = tuple(step * STEP for step in range(-_STEPS, _STEPS + 1))
WORTH: Mapping[str, Callable[[float], bool]] = MappingProxyType(  # unknown, NaN, is not worth it
    {
        "p of chance": lambda value: value <= 0.05,
        "held-out d'": lambda value: value >= 1,
        "split-half cosine": lambda value: value >= 0.3,
    }
)
LEAST = 0.1  # logits that an axis spans at the least
FLUENT = 3.0  # how many times the baseline's perplexity a text may have before we warn


@dataclass(frozen=True)
class Apart:
    """What the direction is compared with: the model with the rest of the plan, if there is any."""

    plan: tuple[Edit, ...]
    name: str  # of the text written without the direction

    @property
    def under(self) -> str:
        """The model without the direction, in words."""
        return f"the model without the direction{f' ({self._rest})' if self.plan else ''}"

    @property
    def _rest(self) -> str:
        return f"with {times(len(self.plan), 'other intervention')}"


def apart(state: Investigation, recipe: Recipe) -> Apart:
    """The plan without this direction, so that a strength is all there is of it, never added."""
    rest = state.besides(recipe)
    if rest:
        return Apart(rest, f"Without it, with the plan ({times(len(rest), 'intervention')})")
    return Apart(rest, "Baseline")


def offered(steering: Steering) -> tuple[float, ...]:
    """The strengths to choose from: the curve's, and one of a link's own."""
    return tuple(sorted({*STRENGTHS, steering.strength}))


def gaps(strength: float) -> str:
    """A strength as it stands on the slider and below the curves."""
    return f"{strength:+.4g}".replace("-", "−") if strength else "0"


def adding(state: Investigation, recipe: Recipe) -> tuple[str, bool]:
    """The words of the button that keeps the direction, and whether it would do anything."""
    strength = state.steering.strength
    held = [edit.strength for edit in state.plan if edit.recipe == recipe and not edit.positions]
    if strength in held:
        return "In the plan", False
    return ("Change in plan" if held else "Add to plan"), strength != 0


def report(result: TwinResult, card: DirectionCard, state: Investigation, recipe: Recipe) -> View:
    """What steering did to the text, and at what price in fluency."""
    steering, other = state.steering, apart(state, recipe)
    return View(
        title=QUESTION,
        sentences=(_fluency(result, other), direction_sentence(card)),
        foot=Foot(
            checks=(*_checks(result, steering.strength), *_separation(card)),
            method=f"Mean difference at {recipe.site}: the mean of the residual stream at the last "
            "token of the positive texts minus that of the negative ones, added at every position; "
            "one gap is the distance of the two means. Both texts are written in one batch with "
            f"the same noise. Perplexity is that of the written text under {other.under}; KL is "
            "how far the steered distribution lies from that model's.",
            table=Table(
                "Steered tokens",
                ("step", "token", f"KL from {other.under}, bits"),
                tuple(
                    (step, shown(text), float(kl))
                    for step, (text, kl) in enumerate(
                        zip(result.steered, result.divergence, strict=True)
                    )
                ),
            ),
            code=script(
                replace(state, plan=other.plan, bypass=False),
                f"direction = {direction(recipe)}",
                f'steer = direction.at({steering.strength!r}, unit="gap", rows=[1])',
                f"both = wb.generate(model, [{result.prompt!r}] * 2, plan=[*plan, steer],",
                f"    max_new_tokens={steering.new_tokens}, temperature={steering.temperature!r}, "
                f"seed=[{steering.seed}] * 2)",
                'print(*both.texts, sep="\\n---\\n")',
            ),
        ),
    )


def dosed(dose: DoseCurve, state: Investigation, recipe: Recipe) -> View:
    """What the direction does to the metric of the prompt above."""
    strength, other = state.steering.strength, apart(state, recipe)
    after = at_dose(dose, strength)
    return View(
        title=say("On the prompt above"),
        sentences=(
            say(
                f"At {signed(strength)} gaps ",
                token(dose.answer.target, "target"),
                " − ",
                token(dose.answer.foil, "foil"),
                f" goes from {signed(dose.base)} to ",
                strong(signed(after, "logits")),
                f", a change of {signed(after - dose.base)} from {other.under}.",
            ),
        ),
        foot=Foot(
            checks=(Check("strength 0 − baseline", tiny(dose.zero), "logits", dose.zero == 0),),
            method="One forward with a row for each strength, the direction added at every "
            f"position; KL is that of the next-token distribution from {other.under}'s. Between "
            "the strengths computed, the curve is straight.",
            table=Table(
                "Target − foil by strength",
                ("strength, gaps", "target − foil, logits", "KL, bits"),
                tuple(
                    (float(s), float(m), float(d))
                    for s, m, d in zip(dose.strengths, dose.metric, dose.divergence, strict=True)
                ),
            ),
            code=script(
                replace(state, plan=other.plan, bypass=False),
                f"direction = {direction(recipe)}",
                f"strengths = {list(STRENGTHS)}",
                'steers = [direction.at(s, unit="gap", rows=[i]) for i, s in enumerate(strengths)]',
                "trace = wb.run(model, [prompt] * len(strengths), plan=[*plan, *steers])",
                *_ids(dose.answer),
                "print(trace.answer_logits[:, target] - trace.answer_logits[:, foil])",
            ),
        ),
    )


def dose_figure(dose: DoseCurve, steering: Steering) -> tuple[Lines, Lines]:
    """The metric by strength, and how far the next-token distribution moves."""
    steps = tuple(gaps(float(s)) for s in dose.strengths)
    nearest = int(np.argmin(np.abs(dose.strengths - steering.strength)))
    low, high = float(dose.metric.min()), float(dose.metric.max())
    flat = 0.0 if high - low > LEAST else LEAST / 2  # else the axis would show rounding errors
    ticks = round_ticks(low - flat, high + flat)
    metric = Lines(
        lines=(Line("target − foil", dose.metric, "accent"),),
        steps=steps,
        step_title="strength, gaps",
        value_title="logits",
        low=ticks[0],
        high=ticks[-1],
        label="Logit difference by steering strength",
        picked=nearest,
        ticks=tuple((v, f"{v:+g}".replace("-", "−") if v else "0") for v in ticks),
    )
    bits = round_ticks(0.0, max(float(dose.divergence.max()), LEAST / 10))
    moved = Lines(
        lines=(Line("KL from the model without the direction", dose.divergence, ""),),
        steps=steps,
        step_title="strength, gaps",
        value_title="bits",
        low=bits[0],
        high=bits[-1],
        label="How far the next-token distribution moves by steering strength",
        picked=nearest,
        ticks=tuple((v, f"{v:g}") for v in bits),
    )
    return metric, moved


def _ids(answer: Answer) -> tuple[str, ...]:
    """The lines of Python that give the ids of target and foil."""
    pairs = (("target", answer.target_key), ("foil", answer.foil_key))
    return tuple(
        f"{name} = {key}" if isinstance(key, int) else f"{name} = model.tokenizer.single({key!r})"
        for name, key in pairs
    )


def weights(divergence: Array) -> list[float]:
    """How thick each token's underline is: 1 at four bits and more."""
    return [float(min(1.0, max(0.0, bits / 4))) for bits in divergence]


def parting(base: tuple[str, ...], steered: tuple[str, ...]) -> int | None:
    """The first step at which the two texts differ."""
    pairs = zip(base, steered, strict=False)
    return next((step for step, (one, other) in enumerate(pairs) if one != other), None)


def at_dose(dose: DoseCurve, strength: float) -> float:
    """The metric at a strength, read off the curve."""
    return float(np.interp(strength, dose.strengths, dose.metric))


def _fluency(result: TwinResult, other: Apart) -> Sentence:
    if result.identical:
        return say("The two texts are identical, token for token.")
    step = parting(result.base, result.steered)
    where = "agree as far as both go" if step is None else f"part after {times(step, 'token')}"
    where = "part at the first token" if step == 0 else where
    ratio = result.steered_perplexity / max(result.base_perplexity, 1e-9)
    note = ""
    if result.repeats is not None:
        phrase, count = result.repeats
        note = f" It repeats “{phrase.strip()}” {times(count, 'time')}: try less strength."
    elif ratio > FLUENT:
        note = " The dose is high: the text is far less likely to the model itself; try less."
    return say(
        f"The texts {where}; their perplexity under {other.under} is "
        f"{plain(result.base_perplexity)} and, steered, ",
        strong(plain(result.steered_perplexity)),
        f" ({plain(ratio)} ×).{note}",
    )


def _acted(result: TwinResult, strength: float) -> Check:
    if not strength:
        return Check("direction", "not added", "nothing to add at strength 0")
    tokens = result.receipt.tokens
    return Check("direction acted", times(tokens, "token"), "every one of the text", tokens > 0)


def _checks(result: TwinResult, strength: float) -> tuple[Check, ...]:
    found = [_acted(result, strength)]
    if len(result.divergence):
        found.append(Check("mean KL", plain(float(result.divergence.mean()), "bits"), "per token"))
    return tuple(found)


def _separation(card: DirectionCard) -> tuple[Check, ...]:
    return tuple(
        Check(q.name, plain(q.value, q.unit), "", q.name not in WORTH or WORTH[q.name](q.value))
        for q in card.quality
    )


def direction_sentence(card: DirectionCard) -> Sentence:
    """The direction in one sentence."""
    return say(
        f"Made of {card.count} texts at {card.site}; one gap, the distance of their means, is ",
        strong(percent(card.relative)),
        " of the stream's norm there.",
    )
