"""Attention: every head small, one head large, and where its queries look."""

from dataclasses import replace

import numpy as np

from app.results import Array, ComponentScores, HeadPattern, Mosaic
from app.specs import resolved
from app.state import Edit, Investigation
from app.views.code import script
from app.views.figures import Bar, Bars, Check, Foot, Heat, Table, View
from app.views.words import Sentence, Span, percent, say, shown, signed, strong, tiny, token

MARKED = 5  # heads outlined for their direct effect
TALL = 540  # pixels of a mosaic, from which its tiles' size follows
SINK = 0.5  # share of a head's attention from which the first token is called its sink
KEYS = 6  # keys listed on the card


def strongest(scores: ComponentScores | None) -> tuple[tuple[int, int], ...]:
    """Layer and head of the heads with the largest direct effect, largest first."""
    if scores is None:
        return ()
    order = np.argsort(-np.abs(scores.values))
    found = [
        (layer, head)
        for layer, head in ((scores.layers[i], scores.heads[i]) for i in order)
        if layer is not None and head is not None
    ]
    return tuple(found[:MARKED])


def picked(mosaic: Mosaic, scores: ComponentScores | None, state: Investigation) -> tuple[int, int]:
    """The head on show: the one picked, else the one with the largest direct effect."""
    layers, heads = mosaic.tiles.shape[:2]
    if state.head is not None and 0 <= state.head[0] < layers and 0 <= state.head[1] < heads:
        return state.head
    marked = strongest(scores)
    return marked[0] if marked else (0, 0)


def tiles(mosaic: Mosaic, scores: ComponentScores | None, state: Investigation) -> Heat:
    """The mosaic: layers upward, heads across, one scale for all."""
    layers, heads, side, _ = mosaic.tiles.shape
    hidden = not state.show_sink and len(mosaic.tokens) > 1
    values = (mosaic.besides if hidden else mosaic.tiles).astype("f4").copy()
    values[:, :, np.triu_indices(side, 1)[0], np.triu_indices(side, 1)[1]] = np.nan
    if hidden and mosaic.pooled == 1:  # of a longer prompt the first cell holds others too
        values[..., 0] = np.nan
    high = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    framed = np.full((layers, heads, side + 1, side + 1), np.nan, "f4")
    framed[:, :, :side, :side] = values
    grid = framed.transpose(0, 2, 1, 3).reshape(layers * (side + 1), heads * (side + 1))
    return Heat(
        values=grid,
        label=f"Attention patterns of {layers} layers with {heads} heads each",
        rows=tuple(map(str, range(layers))),
        columns=tuple(map(str, range(heads))),
        row_title="layer",
        column_title="head",
        unit="",
        note="attention",
        high=max(high, 1e-6),
        upward=True,
        picked=picked(mosaic, scores, state),
        marked=strongest(scores),
        tile=(side + 1, side + 1),
        cell=(18, max(18, min(44, TALL // layers))),
    )


def head(
    pattern: HeadPattern, mosaic: Mosaic, scores: ComponentScores | None, state: Investigation
) -> tuple[View, Heat]:
    """One head's pattern: queries downward, keys to the right."""
    name = f"L{pattern.layer}H{pattern.head}"
    visible = masked(pattern.pattern, hide_first=_hides(pattern, state))
    tokens = tuple(shown(text) for text in pattern.tokens)
    count = len(tokens)
    high = float(np.nanmax(visible)) if np.isfinite(visible).any() else 1.0
    share = float(mosaic.sink[pattern.layer, pattern.head])
    key, _, _ = _best_key(pattern, state)
    view = View(
        title=say(f"Where does {name} look?"),
        sentences=(_told(pattern, state, scores), _sink(pattern, share, state)),
        foot=Foot(
            checks=(
                Check(
                    "rows sum to 1 within", tiny(mosaic.rowsum), "all heads", mosaic.rowsum < 1e-3
                ),
            ),
            method="The softmax attention of one head, as it ran under the plan. Attention says "
            "where a head reads from, not what it does with it: see its direct effect, or ablate "
            "it and watch the metric. Outlined tiles are the heads with the largest direct effect.",
            table=_table(pattern),
            code=script(
                replace(state, pos=None),
                f'site = "blocks.{pattern.layer}.attn.hook_pattern"',
                "trace = wb.run(model, prompt, plan=plan, record=[site])",
                f"pattern = trace[site][0, {pattern.head}]  # query key",
                "print(pattern)",
            ),
        ),
    )
    figure = Heat(
        values=visible,
        label=f"Attention of head {name} from each query to each key",
        rows=tokens,
        columns=tokens,
        row_title="query",
        column_title="key",
        unit="",
        note=_legend(pattern, state),
        high=max(high, 1e-6),
        picked=(_query(pattern, state), min(max(0, key - pattern.first), count - 1)),
        column_labels="top",
        cell=(6, 28),
    )
    return view, figure


def card(
    pattern: HeadPattern, scores: ComponentScores | None, state: Investigation
) -> tuple[Sentence, Bars, tuple[tuple[str, str], ...]]:
    """The head's reading from the position read: its strongest keys and its direct effect."""
    query = _query(pattern, state)
    title = say(f"From position {query + pattern.first} ", token(pattern.tokens[query]))
    figure = Bars(
        rows=tuple(
            Bar(
                label=shown(text),
                value=float(share),
                text=percent(float(share)),
                tone="accent",
                detail=f"at {int(key)}",
                literal=True,
            )
            for key, share, text in _keys(pattern, query)[:KEYS]
        ),
        label="Keys this query attends to most",
        unit="attention",
        most=1.0,
    )
    effect = direct_effect(pattern, scores)
    rows = (("direct effect", "not computed" if effect is None else signed(effect, "logits")),)
    return title, figure, rows


def direct_effect(pattern: HeadPattern, scores: ComponentScores | None) -> float | None:
    """What the head adds to target - foil directly, in logits."""
    if scores is None:
        return None
    for index, place in enumerate(zip(scores.layers, scores.heads, strict=True)):
        if place == (pattern.layer, pattern.head):
            return float(scores.values[index])
    return None


def ablation(pattern: HeadPattern) -> Edit:
    """The edit that takes the head out."""
    return Edit("zero", f"blocks.{pattern.layer}.attn.hook_z", heads=(pattern.head,))


def masked(pattern: Array, *, hide_first: bool) -> Array:
    """A pattern without the cells that causality rules out, and without the sink if hidden."""
    values = pattern.astype("f4").copy()
    values[np.triu_indices(len(values), 1)] = np.nan
    if hide_first:
        values[:, 0] = np.nan
    return values


def _hides(pattern: HeadPattern, state: Investigation) -> bool:
    return not state.show_sink and pattern.first == 0 and len(pattern.tokens) > 1


def _query(pattern: HeadPattern, state: Investigation) -> int:
    return resolved(state.pos, pattern.length) - pattern.first


def _keys(pattern: HeadPattern, query: int) -> list[tuple[int, float, str]]:
    """Position, share and text of the strongest keys of a query, in the whole prompt."""
    found = zip(
        pattern.keys[query].tolist(),
        pattern.shares[query].tolist(),
        pattern.key_texts[query],
        strict=True,
    )
    return [one for one in found if one[0] <= query + pattern.first]


def _best_key(pattern: HeadPattern, state: Investigation) -> tuple[int, float, str]:
    query = _query(pattern, state)
    keys = _keys(pattern, query)
    besides = [one for one in keys if one[0] > 0] if _aside(pattern, state, query) else keys
    return (besides or keys)[0]


def _aside(pattern: HeadPattern, state: Investigation, query: int) -> bool:
    """Whether the first token is left out of account."""
    return not state.show_sink and query + pattern.first > 0


def _told(pattern: HeadPattern, state: Investigation, scores: ComponentScores | None) -> Sentence:
    query = _query(pattern, state)
    key, share, text = _best_key(pattern, state)
    aside = ", the first token aside," if _aside(pattern, state, query) else ""
    sentence = say(
        "From ",
        token(pattern.tokens[query]),
        f"{aside} it looks most at ",
        token(text),
        " with ",
        strong(percent(share)),
        f" (position {key})",
    )
    effect = direct_effect(pattern, scores)
    if effect is None:
        return (*sentence, Span("."))
    return sentence + say(", and adds ", strong(signed(effect, "logits")), " to target − foil.")


def _sink(pattern: HeadPattern, share: float, state: Investigation) -> Sentence:
    told = f"On average {percent(share)} of this head's attention rests on the first token"
    if len(pattern.tokens) < pattern.length:
        last = pattern.first + len(pattern.tokens) - 1
        window = f"positions {pattern.first} to {last} of {pattern.length} are shown"
        return say(f"{told}; {window}.")
    if _hides(pattern, state):
        sink = ", the attention sink" if share >= SINK else ""
        return say(f"{told}{sink}; its column is hidden, the colours scaled to the rest.")
    return say(f"{told}; it is shown.")


def mosaic_note(mosaic: Mosaic) -> Sentence:
    """What the outlines and, of a long prompt, the cells of the mosaic are."""
    told = "Outlined: the largest direct effects."
    if mosaic.pooled > 1:
        told += f" A cell is the largest of {mosaic.pooled} × {mosaic.pooled} positions."
    return say(told)


def _legend(pattern: HeadPattern, state: Investigation) -> str:
    return "attention, first token hidden" if _hides(pattern, state) else "attention"


def _table(pattern: HeadPattern) -> Table:
    rows = tuple(
        (
            query + pattern.first,
            shown(pattern.tokens[query]),
            key + pattern.first,
            shown(pattern.tokens[key]),
            float(pattern.pattern[query, key]),
        )
        for query in range(len(pattern.tokens))
        for key in range(query + 1)
    )
    return Table(
        "Attention from query to key", ("query", "token", "key", "token read", "attention"), rows
    )
