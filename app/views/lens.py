"""The Lens: what could be said after every layer, at every position."""

from dataclasses import replace

import numpy as np

from app.results import LensReading
from app.state import Edit, Investigation
from app.views.code import ROWS, script
from app.views.figures import Bar, Bars, Check, Foot, Heat, Table, View
from app.views.overview import EXACT, after, ranked, settled
from app.views.words import Sentence, Words, percent, plain, say, shown, strong, times, tiny, token

QUESTION = say("What could be said after each layer?")


def lens(reading: LensReading, state: Investigation) -> tuple[View, Heat]:
    """The grid of top words, shaded by their probability; layers grow upward."""
    columns = tuple(shown(reading.tokens[pos]) for pos in reading.positions)
    texts = tuple(tuple(shown(cell[0]) for cell in row) for row in reading.texts)
    hidden = len(reading.tokens) - len(reading.positions)
    view = View(
        title=QUESTION,
        sentences=(_told(reading), *_hidden(reading, hidden)),
        foot=_foot(reading, state, columns, texts),
    )
    figure = Heat(
        values=reading.probs[:, :, 0],
        label=f"Top word after each of {len(reading.layers)} layers at {len(columns)} positions",
        rows=reading.layers,
        columns=columns,
        row_title="layer",
        column_title="token read",
        unit="",
        note="probability of the top word",
        upward=True,
        texts=texts,
        picked=picked(reading, state),
        cell=(40, 110),
        cell_height=15,
    )
    return view, figure


def _foot(
    reading: LensReading,
    state: Investigation,
    columns: tuple[str, ...],
    texts: tuple[tuple[str, ...], ...],
) -> Foot:
    rows, residual = reversed(range(len(reading.layers))), reading.residual
    cells = ((i, j, pos) for i in rows for j, pos in enumerate(reading.positions))
    return Foot(
        checks=(Check("KL of last row to model", tiny(residual), "bits", residual < EXACT),),
        method="Raw logit lens (nostalgebraist 2020): the stream after each layer through the "
        "model's final norm and unembedding. Early rows are often unreadable because the lens "
        "is not trained for them; that is the lens's limit, not proof of ignorance.",
        table=Table(
            "Top word by layer and position",
            ("layer", "position", "token", "top word", "probability", "entropy, bits"),
            tuple(
                (
                    reading.layers[i],
                    pos,
                    columns[j],
                    texts[i][j],
                    float(reading.probs[i, j, 0]),
                    float(reading.entropy[i, j]),
                )
                for i, j, pos in cells
            ),
        ),
        code=script(
            replace(state, pos=None),
            "from workbench.lenses import METHODS as LENSES",
            ROWS,
            'reading = LENSES["logit_lens"](model, prompt, sites=rows, plan=plan)',
            "print(reading.table())",
        ),
    )


def picked(reading: LensReading, state: Investigation) -> tuple[int, int]:
    """The row and column of the picked cell; where nothing fits, the last row of what is read."""
    columns = {pos: column for column, pos in enumerate(reading.positions)}
    last = len(reading.layers) - 1
    if state.cell is None or state.cell[1] not in columns:
        first = settled(reading.target_alone)
        return (last if first is None else first), columns[reading.pos]
    return max(0, min(last, state.cell[0])), columns[state.cell[1]]


def card(
    reading: LensReading, state: Investigation
) -> tuple[Sentence, Bars, tuple[tuple[str, Words], ...]]:
    """The picked cell: its words, how sure it is, how far from the end it still is."""
    row, column = picked(reading, state)
    pos = reading.positions[column]
    texts, probs = reading.texts[row][column], reading.probs[row, column]
    answer = reading.answer
    title = say(f"{layer_name(reading.layers[row])}, position {pos} ", token(reading.tokens[pos]))
    figure = Bars(
        rows=tuple(
            Bar(
                label=shown(text),
                value=float(p),
                text=percent(float(p)),
                tone="target" if text == answer.target else "foil" if text == answer.foil else "",
                literal=True,
            )
            for text, p in zip(texts, probs, strict=True)
        ),
        label="Top words of this cell",
        unit="probability",
        most=max(float(probs.max()), 1e-9),
    )
    rows = (
        ("entropy", plain(float(reading.entropy[row, column]), "bits")),
        ("KL of the output from it", plain(float(reading.divergence[row, column]), "bits")),
    )
    return title, figure, rows


def ablations(reading: LensReading, state: Investigation) -> tuple[tuple[str, Edit], ...]:
    """What can be taken out at the picked cell: the layer's MLP and attention, there only."""
    row, column = picked(reading, state)
    if row == 0:
        return ()
    layer, pos = row - 1, reading.positions[column]
    return tuple(
        (f"Ablate its {name} here", Edit("zero", f"blocks.{layer}.{hook}", positions=(pos,)))
        for name, hook in (("MLP", "hook_mlp_out"), ("attention", "hook_attn_out"))
    )


def layer_name(name: str) -> str:
    """A row in words."""
    return "The embedding" if name == "embed" else f"After layer {name}"


def _told(reading: LensReading) -> Sentence:
    answer, first = reading.answer, settled(reading.target_alone)
    where = say(f"At position {reading.pos} ", token(reading.tokens[reading.pos]), ", ")
    if first is None:
        best = int(np.argmin(reading.target_rank))
        return where + say(
            token(answer.target, "target"),
            " never stays first; its best is ",
            strong(ranked(int(reading.target_rank[best]), alone=bool(reading.target_alone[best]))),
            f", {after(reading.layers[best])}.",
        )
    decided = len(reading.layers) - 1 - first
    return where + say(
        token(answer.target, "target"),
        " is the top word ",
        strong(after(reading.layers[first])),
        f" and stays so for the {times(decided, 'layer')} that follow."
        if decided
        else ": only the very last layer decides.",
    )


def _hidden(reading: LensReading, hidden: int) -> tuple[Sentence, ...]:
    if not hidden:
        return ()
    low, high = reading.positions[0], reading.positions[-1]
    return (
        say(
            f"Shown are positions {low} to {high}; {times(hidden, 'other')} are not, since a cell "
            "needs room for its word. Pick a token above to move there."
        ),
    )
