"""The Overview: what comes next, since which layer, and through which parts."""

import numpy as np

from app.results import Answer, ComponentScores, LensReading, Reading
from app.state import Edit, Investigation
from app.views.code import script
from app.views.figures import Bar, Bars, Check, Foot, Line, Lines, Table, Tone, View
from app.views.words import percent, plain, say, shown, signed, strong, tiny, token

TOP = 8  # components shown
EXACT = 1e-3  # logits or probability by which a check may miss


def next_tokens(reading: Reading, state: Investigation) -> tuple[View, Bars]:
    """What the model says next."""
    best, answer = reading.top[0], reading.answer
    planned = reading.after is not None
    first = say("The model says ", token(best.text, _kind(best.text, answer)), " next, with ")
    sentence = first + say(strong(percent(best.prob)))
    others = [
        part
        for candidate, rank in ((reading.target, reading.target_rank), (reading.foil, reading.foil_rank))
        if candidate.text != best.text
        for part in (
            "; ",
            token(candidate.text, _kind(candidate.text, answer)),
            f" gets {percent(candidate.prob)} (rank {rank})",
        )
    ]
    sentence += say(*others, ".")
    return (
        View(
            title=say("What does the model say next?"),
            sentences=(sentence, *_change(reading)),
            foot=Foot(
                checks=(
                    Check("shown of all probability", percent(sum(c.prob for c in reading.top))),
                    Check("entropy", plain(reading.entropy, "bits"), "0 is certain"),
                ),
                method="One forward pass; probabilities are the softmax of the logits after the "
                "position read. A dark tick marks the probability without the plan.",
                table=Table(
                    "Next tokens",
                    ("token", "probability", "without the plan", "logit"),
                    tuple((shown(c.text), c.prob, c.before, c.logit) for c in reading.top),
                ),
                code=script(
                    state,
                    'trace = wb.run(model, prompt, plan=plan, positions="last")',
                    "best = trace.answer_logits[0].softmax(-1).topk(10)",
                    "for p, i in zip(best.values.tolist(), best.indices.tolist()):",
                    "    print(f'{p:.3f}', repr(model.tokenizer.token_text(i)))",
                ),
            ),
        ),
        Bars(
            rows=tuple(
                Bar(
                    label=shown(c.text),
                    value=c.prob,
                    text=percent(c.prob),
                    tone=_tone(c.text, answer),
                    before=c.before if planned else None,
                    literal=True,
                )
                for c in reading.top
            ),
            label=f"The {len(reading.top)} likeliest next tokens",
            unit="probability",
            most=max(max(c.prob for c in reading.top), 1e-9),
            actions=(("target", "target"), ("foil", "foil")),
        ),
    )


def by_layer(lens: LensReading, state: Investigation) -> tuple[View, Lines]:
    """Target and foil, layer by layer, read from the residual stream."""
    answer = lens.answer
    steps = tuple(lens.layers)
    first = settled(lens.target_rank)
    if first is None:
        told = say(
            "Read as words after every layer, the stream never puts ",
            token(answer.target, "target"),
            " first.",
        )
    else:
        told = say(
            token(answer.target, "target"),
            " is first from ",
            strong(_layer(steps[first])),
            " on; it ends at ",
            strong(percent(float(lens.target_prob[-1]))),
            ".",
        )
    return (
        View(
            title=say("Since which layer?"),
            sentences=(told,),
            foot=Foot(
                checks=(
                    Check(
                        "last layer − model",
                        tiny(lens.residual),
                        "in probability",
                        lens.residual < EXACT,
                    ),
                ),
                method="Logit lens (nostalgebraist 2020): the residual stream after each layer goes "
                "through the model's own final norm and unembedding. It shows what can be read "
                "there, not what the model uses.",
                table=Table(
                    "Target and foil by layer",
                    ("layer", "p target", "rank", "p foil", "rank of foil"),
                    tuple(
                        (name, float(p), int(r), float(q), int(s))
                        for name, p, r, q, s in zip(
                            steps,
                            lens.target_prob,
                            lens.target_rank,
                            lens.foil_prob,
                            lens.foil_rank,
                            strict=True,
                        )
                    ),
                ),
                code=script(
                    state,
                    "from workbench.lenses import METHODS as LENSES",
                    'reading = LENSES["logit_lens"](model, prompt, plan=plan)',
                    "print(reading.table())",
                ),
            ),
        ),
        Lines(
            lines=(
                Line(shown(answer.target), lens.target_prob, "target"),
                Line(shown(answer.foil), lens.foil_prob, "foil"),
            ),
            steps=steps,
            step_title="layer",
            value_title="probability",
            low=0.0,
            high=1.0,
            label="Probability of target and foil after each layer",
            upward=True,
            picked=first,
            ticks=((0.0, "0"), (0.25, ""), (0.5, "50 %"), (0.75, ""), (1.0, "100 %")),
        ),
    )


def components(scores: ComponentScores, state: Investigation) -> tuple[View, Bars, tuple[int, ...]]:
    """The parts that push most for target or foil; also the index of each row's component."""
    order = tuple(int(i) for i in np.argsort(-np.abs(scores.values))[:TOP])
    best = int(np.argmax(scores.values))
    answer = scores.answer
    residual = abs(scores.total - scores.metric)
    told = say(
        strong(scores.names[best]),
        " adds most to ",
        token(answer.target, "target"),
        " over ",
        token(answer.foil, "foil"),
        ": ",
        strong(signed(float(scores.values[best]), "logits")),
        f" of {signed(scores.metric)}.",
    )
    view = View(
        title=say("Through which parts?"),
        sentences=(told,),
        foot=Foot(
            checks=(
                Check(
                    "sum of all parts − metric",
                    tiny(residual),
                    f"logits, of {signed(scores.metric)}",
                    residual < EXACT,
                ),
            ),
            method=f"Direct logit attribution ({scores.source}): each part's own addition to the "
            "residual stream, through the final norm as it was in this run, onto target − foil. "
            "Exact for the direct path; what a part does through later parts is not counted.",
            table=Table(
                "Direct contribution to target − foil, in logits",
                ("part", "logits"),
                tuple(
                    (scores.names[i], float(scores.values[i]))
                    for i in np.argsort(-np.abs(scores.values))
                ),
            ),
            code=script(
                state,
                "from workbench.attribution import METHODS as ATTRIBUTION",
                f"contrast = wb.Contrast(clean=prompt, corrupt=prompt, target={answer.target!r}, "
                f"foil={answer.foil!r})",
                'scores = ATTRIBUTION["direct_logit_attribution"](model, contrast)',
                "print(scores.table())",
            ),
        ),
    )
    figure = Bars(
        rows=tuple(
            Bar(
                label=scores.names[i],
                value=float(scores.values[i]),
                text=signed(float(scores.values[i])),
                tone="target" if scores.values[i] > 0 else "foil",
            )
            for i in order
        ),
        label="Parts that add most to target − foil, in logits",
        unit="logits",
        most=float(np.abs(scores.values).max()) or 1.0,
        signed=True,
        actions=(("ablate", "ablate"),),
    )
    return view, figure, order


def ablation(scores: ComponentScores, index: int) -> Edit | None:
    """The edit that takes a component out; nothing for the embedding, without which nothing runs."""
    layer, head = scores.layers[index], scores.heads[index]
    if layer is None:
        return None
    if head is not None:
        return Edit("zero", f"blocks.{layer}.attn.hook_z", heads=(head,))
    return Edit("zero", f"blocks.{layer}.hook_mlp_out")


def settled(ranks: "np.typing.NDArray[np.int64]") -> int | None:
    """The first row from which on the rank is always 1."""
    behind = np.flatnonzero(ranks != 1)
    first = int(behind[-1]) + 1 if len(behind) else 0
    return first if first < len(ranks) else None


def _change(reading: Reading) -> tuple[tuple[object, ...], ...]:
    if reading.after is None:
        return ()
    moved = reading.after - reading.before
    return (
        say(
            "The plan moves target − foil by ",
            strong(signed(moved, "logits")),
            f", from {signed(reading.before)} to {signed(reading.after)}; without it ",
            token(reading.target.text, "target"),
            f" had {percent(reading.target.before)}.",
        ),
    )


def _kind(text: str, answer: Answer) -> str:
    return _tone(text, answer) or "token"


def _tone(text: str, answer: Answer) -> Tone:
    return "target" if text == answer.target else "foil" if text == answer.foil else ""


def _layer(name: str) -> str:
    return "the embedding" if name == "embed" else f"layer {name}"
