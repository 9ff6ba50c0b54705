"""Lens: layers x positions, each cell the word that could be said there."""

from collections.abc import Callable
from dataclasses import replace

import streamlit as st

from app.components.bars import bars
from app.components.foot import foot
from app.components.heat import heat
from app.components.prose import prose
from app.desk import Desk, Wait, become, callback, current, question
from app.page import Page
from app.results import LensReading
from app.specs import Lens
from app.views import lens as views


def render(desk: Desk) -> None:
    """The grid, and beside it the card of the picked cell."""
    reading = desk.ask(
        question(desk, Lens),
        LensReading,
        Wait("lens", "reading every layer", 560, views.QUESTION),
    )
    if reading is None:
        return
    view, figure = views.lens(reading, desk.state)
    prose(*view.sentences, key="lens-title", kind="page", title=view.title)
    grid, side = st.columns([3, 1], gap="medium")
    with grid, st.container(key="lens-figure"):
        heat(figure, key="lens", file="lens", on_pick=_picked(reading))
        foot(view.foot, key="lens-foot")
    with side, st.container(key="lens-card"):
        _card(desk, reading)


def _card(desk: Desk, reading: LensReading) -> None:
    title, figure, rows = views.card(reading, desk.state)
    prose(key="lens-card-title", title=title)
    bars(figure, key="lens-card-bars")
    prose(key="lens-card-rows", rows=rows)
    pos = reading.positions[views.picked(reading, desk.state)[1]]
    if pos != reading.pos:
        last = pos == len(reading.tokens) - 1
        st.button(
            "Read this position",
            key="lens-read",
            on_click=callback(lambda state: replace(state, pos=None if last else pos)),
        )
    for index, (words, edit) in enumerate(views.ablations(reading, desk.state)):
        st.button(
            words,
            key=f"lens-ablate-{index}",
            on_click=callback(lambda state, edit=edit: state.add(edit)),
            help="Adds it to the plan; the metric above shows what it does.",
        )


def _picked(reading: LensReading) -> Callable[[int, int], None]:
    def pick(row: int, column: int) -> None:
        become(replace(current(), cell=(row, reading.positions[column])))

    return pick


PAGE = Page("Lens", "", render, order=20)
