"""The Overview: what comes next, since which layer, and through which parts."""

import math

import numpy as np

from app.results import Answer, Array, ComponentScores, Path, Reading
from app.state import Edit, Investigation
from app.views.code import ROWS, script
from app.views.figures import Bar, Bars, Check, Foot, Line, Lines, Table, Tone, View
from app.views.words import Kind, Sentence, percent, plain, say, shown, signed, strong, tiny, token

TOP = 8  # components shown
EXACT = 1e-3  # logits or probability by which a check may miss


def next_tokens(reading: Reading, state: Investigation) -> tuple[View, Bars]:
    """What the model says next."""
    view = View(
        title=say("What does the model say next?"),
        sentences=(_said(reading), *_change(reading)),
        foot=_said_foot(reading, state),
    )
    return view, _said_bars(reading)


def _said(reading: Reading) -> Sentence:
    best, answer = reading.top[0], reading.answer
    first = say("The model says ", token(best.text, _kind(best.text, answer)), " next, with ")
    sentence = first + say(strong(percent(best.prob)))
    others = [
        part
        for candidate, rank in (
            (reading.target, reading.target_rank),
            (reading.foil, reading.foil_rank),
        )
        if candidate.text != best.text
        for part in (
            "; ",
            token(candidate.text, _kind(candidate.text, answer)),
            f" gets {percent(candidate.prob)} (rank {rank})",
        )
    ]
    return sentence + say(*others, ".")


def _said_foot(reading: Reading, state: Investigation) -> Foot:
    return Foot(
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
    )


def _said_bars(reading: Reading) -> Bars:
    planned = reading.after is not None
    return Bars(
        rows=tuple(
            Bar(
                label=shown(c.text),
                value=c.prob,
                text=percent(c.prob),
                tone=_tone(c.text, reading.answer),
                before=c.before if planned else None,
                literal=True,
                active=c.spelt,
            )
            for c in reading.top
        ),
        label=f"The {len(reading.top)} likeliest next tokens",
        unit="probability",
        most=max(*(c.prob for c in reading.top), *(c.before for c in reading.top), 1e-9),
        actions=(("target", "target"), ("foil", "foil")),
    )


def by_layer(path: Path, state: Investigation) -> tuple[View, Lines]:
    """Target and foil, layer by layer, read from the residual stream."""
    first = settled(path.target_alone)
    view = View(
        title=say("Since which layer?"),
        sentences=(_since(path, first),),
        foot=_path_foot(path, state),
    )
    return view, _path_lines(path, first)


def _path_foot(path: Path, state: Investigation) -> Foot:
    target, foil = (path.target_rank, path.target_prob), (path.foil_rank, path.foil_prob)
    rows = zip(path.layers, *target, *foil, strict=True)
    return Foot(
        checks=(
            Check("KL of last row to model", tiny(path.residual), "bits", path.residual < EXACT),
        ),
        method="Logit lens (nostalgebraist 2020): the residual stream after each layer goes "
        "through the model's own final norm and unembedding. It shows what can be read there, "
        "not what the model uses.",
        table=Table(
            "Target and foil by layer",
            ("layer", "rank", "probability", "rank of foil", "probability of foil"),
            tuple((name, int(r), float(p), int(s), float(q)) for name, r, p, s, q in rows),
        ),
        code=script(
            state,
            "from workbench.lenses import METHODS as LENSES",
            f"watch = [{path.answer.target_key!r}, {path.answer.foil_key!r}]",
            ROWS,
            'reading = LENSES["logit_lens"](model, prompt, sites=rows, plan=plan,',
            '    positions="last", watch=watch)',
            "print(1 + reading.ranks[:, 0])  # layer token",
        ),
    )


def _path_lines(path: Path, first: int | None) -> Lines:
    powers = range(math.ceil(math.log10(path.vocabulary)) + 1)
    ticks = tuple((-float(power), f"{10**power:,}") for power in powers)
    curves: tuple[tuple[Tone, str, Array, Array], ...] = (
        ("target", path.answer.target, path.target_rank, path.target_prob),
        ("foil", path.answer.foil, path.foil_rank, path.foil_prob),
    )
    return Lines(
        lines=tuple(
            Line(shown(text), -np.log10(ranks), tone, _ranks(ranks, probs))
            for tone, text, ranks, probs in curves
        ),
        steps=tuple(path.layers),
        step_title="layer",
        value_title=f"rank among {path.vocabulary:,} tokens (1 is said)",
        low=ticks[-1][0],
        high=0.0,
        label="Rank of target and foil after each layer",
        upward=True,
        picked=first,
        ticks=ticks,
    )


def components(scores: ComponentScores, state: Investigation) -> tuple[View, Bars, tuple[int, ...]]:
    """The parts that push most for target or foil; also the index of each row's component."""
    order = tuple(int(i) for i in np.argsort(-np.abs(scores.values)))
    best = int(np.argmax(scores.values))
    told = say(
        strong(scores.names[best]),
        " adds most to ",
        token(scores.answer.target, "target"),
        " over ",
        token(scores.answer.foil, "foil"),
        ": ",
        strong(signed(float(scores.values[best]), "logits")),
        f" of {signed(scores.metric)}.",
    )
    view = View(
        title=say("Through which parts?"),
        sentences=(told,),
        foot=_parts_foot(scores, state, order),
    )
    return view, _parts_bars(scores, order[:TOP]), order[:TOP]


def _parts_foot(scores: ComponentScores, state: Investigation, order: tuple[int, ...]) -> Foot:
    residual, answer = abs(scores.total - scores.metric), scores.answer
    whole = f"logits, of {signed(scores.metric)}"
    return Foot(
        checks=(Check("sum of all parts − metric", tiny(residual), whole, residual < EXACT),),
        method=f"Direct logit attribution ({scores.source}): each part's own addition to the "
        "residual stream, through the final norm as it was in this run, onto target − foil. What "
        "the plan itself writes into the stream or takes from it is a part of its own. "
        "Exact for the direct path; what a part does through later parts is not counted.",
        table=Table(
            "Direct contribution to target − foil, in logits",
            ("part", "logits"),
            tuple((scores.names[i], float(scores.values[i])) for i in order),
        ),
        code=script(
            state,
            "from workbench.attribution import METHODS as ATTRIBUTION",
            f"target, foil = {answer.target_key!r}, {answer.foil_key!r}",
            "contrast = wb.Contrast(clean=[prompt], corrupt=[prompt], target=target, foil=foil)",
            'scores = ATTRIBUTION["direct_logit_attribution"](model, contrast, plan=plan)',
            "print(scores.table())",
        ),
    )


def _parts_bars(scores: ComponentScores, order: tuple[int, ...]) -> Bars:
    return Bars(
        rows=tuple(
            Bar(
                label=scores.names[i],
                value=float(scores.values[i]),
                text=signed(float(scores.values[i])),
                tone="target" if scores.values[i] > 0 else "foil",
                active=ablation(scores, i) is not None,
            )
            for i in order
        ),
        label="Parts that add most to target − foil, in logits",
        unit="logits",
        most=float(np.abs(scores.values).max()) or 1.0,
        signed=True,
        actions=(("ablate", "ablate"),),
    )


def ablation(scores: ComponentScores, index: int) -> Edit | None:
    """The edit that takes a component out; none for the embedding and the biases."""
    layer, head = scores.layers[index], scores.heads[index]
    if layer is None:
        return None
    if head is not None:
        return Edit("zero", f"blocks.{layer}.attn.hook_z", heads=(head,))
    return Edit("zero", f"blocks.{layer}.hook_mlp_out")


def settled(alone: Array) -> int | None:
    """The first row from which on the target is always the likeliest, and no other as likely."""
    behind = np.flatnonzero(~alone)
    first = int(behind[-1]) + 1 if len(behind) else 0
    return first if first < len(alone) else None


def ranked(rank: int, *, alone: bool) -> str:
    """A rank in words; equals share theirs, so that the first may be one of many."""
    return f"rank {rank:,}" if alone or rank > 1 else "a tie for rank 1"


def _since(path: Path, first: int | None) -> Sentence:
    answer = path.answer
    if first is None:
        best = int(np.argmin(path.target_rank))
        return say(
            token(answer.target, "target"),
            " never settles first; its best is ",
            strong(ranked(int(path.target_rank[best]), alone=bool(path.target_alone[best]))),
            f", {after(path.layers[best])}.",
        )
    middle = len(path.layers) // 2
    if first <= middle:
        return say(
            token(answer.target, "target"),
            " comes first ",
            strong(after(path.layers[first])),
            ", to stay.",
        )
    last = first == len(path.layers) - 1
    return say(
        token(answer.target, "target"),
        " has ",
        strong(ranked(int(path.target_rank[middle]), alone=bool(path.target_alone[middle]))),
        f" {after(path.layers[middle])} and comes first ",
        *("only " if last else "", strong(after(path.layers[first])), "" if last else ", to stay"),
        ".",
    )


def _ranks(ranks: Array, probs: Array) -> tuple[str, ...]:
    return tuple(f"rank {r:,} ({percent(float(p))})" for r, p in zip(ranks, probs, strict=True))


def _change(reading: Reading) -> tuple[Sentence, ...]:
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


def _kind(text: str, answer: Answer) -> Kind:
    return "target" if text == answer.target else "foil" if text == answer.foil else "token"


def _tone(text: str, answer: Answer) -> Tone:
    return "target" if text == answer.target else "foil" if text == answer.foil else ""


def after(name: str) -> str:
    """A row of the stream in words."""
    return "in the embedding" if name == "embed" else f"after layer {name}"
