"""Attention: every head small, one large; a head can be taken out."""

from dataclasses import replace

import streamlit as st

from app.components.bars import bars
from app.components.foot import foot
from app.components.heat import heat
from app.components.prose import prose
from app.desk import Desk, Wait, become, callback, current, question
from app.page import Page
from app.results import ComponentScores, HeadPattern, Mosaic
from app.specs import LARGE, Attention, Components, Head
from app.views import attention as views
from app.views.words import say


def render(desk: Desk) -> None:
    """The mosaic, the head on show, and its card."""
    state = desk.state
    mosaic = desk.ask(
        Attention(state.model, state.prompt, state.active),
        Mosaic,
        Wait("attention", "attention of every head", 560, "Where does each head look?"),
    )
    if mosaic is None:
        return
    scores = desk.ask(
        question(desk, Components), ComponentScores, Wait("components", "direct effects", 80)
    )
    pattern = _pattern(desk, views.picked(mosaic, scores, state))
    if pattern is None:
        return
    view, figure = views.head(pattern, mosaic, scores, state)
    prose(*view.sentences, key="attention-title", kind="page", title=view.title)
    small, large, side = st.columns([1.05, 2, 1], gap="medium")
    with small, st.container(key="mosaic-figure"):
        prose(views.mosaic_note(mosaic), key="mosaic-title", title="All heads")
        heat(views.tiles(mosaic, scores, state), key="mosaic", file="heads", on_pick=_pick)
    with large, st.container(key="head-figure"):
        name = f"L{pattern.layer}H{pattern.head}"
        prose(say("Each row is one query; a click reads from it."), key="head-title", title=name)
        heat(figure, key="head", file=name, on_pick=_query(pattern))
        foot(view.foot, key="head-foot")
    with side, st.container(key="head-card"):
        _card(pattern, scores, desk)


def _card(pattern: HeadPattern, scores: ComponentScores | None, desk: Desk) -> None:
    words, figure, rows = views.card(pattern, scores, desk.state)
    prose(key="head-card-title", title=words)
    bars(figure, key="head-card-bars")
    prose(key="head-card-rows", rows=rows)
    edit = views.ablation(pattern)
    st.button(
        f"Ablate L{pattern.layer}H{pattern.head}",
        key="head-ablate",
        type="primary",
        disabled=edit in desk.state.plan,
        on_click=callback(lambda state: state.add(edit)),
        help="Sets this head's output to zero; the metric above shows what that does.",
    )
    st.button(
        "Hide the first token" if desk.state.show_sink else "Show the first token",
        key="head-sink",
        on_click=callback(lambda state: replace(state, show_sink=not state.show_sink)),
    )


def _pattern(desk: Desk, place: tuple[int, int]) -> HeadPattern | None:
    state = desk.state
    pos = state.pos if len(desk.reading.tokens) > LARGE else None  # only then does it matter
    return desk.ask(
        Head(state.model, state.prompt, state.active, *place, pos),
        HeadPattern,
        Wait("head", f"attention of L{place[0]}H{place[1]}", 560, "Where does this head look?"),
    )


def _pick(layer: int, head: int) -> None:
    become(replace(current(), head=(layer, head)))


def _query(pattern: HeadPattern):
    last = len(pattern.tokens) - 1

    def pick(row: int, _: int) -> None:
        become(replace(current(), pos=None if row == last else row + pattern.first))

    return pick


PAGE = Page("Attention", "", render, order=30)
