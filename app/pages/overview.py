"""Overview: what comes next, since which layer, through which parts."""

from collections.abc import Callable
from dataclasses import replace

import streamlit as st

from app.components.bars import bars
from app.components.foot import foot
from app.components.lines import lines
from app.components.prose import prose
from app.desk import Desk, Wait, become, current, go, question
from app.page import Page
from app.results import ComponentScores, Path
from app.specs import Components, Trajectory
from app.views import overview
from app.views.figures import View


def render(desk: Desk) -> None:
    """Three answers, in the order in which they can be had."""
    view, figure = overview.next_tokens(desk.reading, desk.state)
    prose(*view.sentences, key="overview-title", kind="page", title=view.title)
    first, second, third = st.columns([1.1, 1, 1.05], gap="large")
    with first, st.container(key="card-next"):
        prose(key="next-title", title="Likeliest tokens")
        bars(figure, key="next", on_act=_chosen(desk))
        foot(view.foot, key="next-foot")
    with second, st.container(key="card-layers"):
        _layers(desk)
    with third, st.container(key="card-parts"):
        _parts(desk)


def _layers(desk: Desk) -> None:
    path = desk.ask(question(desk, Trajectory), Path, Wait("path", "reading every layer", 320))
    if path is None:
        return
    view, figure = overview.by_layer(path, desk.state)
    _head(view, "layers")
    pos = desk.reading.pos

    def pick(row: int) -> None:
        become(replace(current(), cell=(row, pos)))
        go("lens")

    lines(figure, key="layers", height=272, on_pick=pick)
    foot(view.foot, key="layers-foot")


def _parts(desk: Desk) -> None:
    scores = desk.ask(
        question(desk, Components),
        ComponentScores,
        Wait("components", "attributing to parts", 320),
    )
    if scores is None:
        return
    view, figure, order = overview.components(scores, desk.state)
    _head(view, "parts")

    def act(name: str, row: int) -> None:
        index = order[row]
        if name == "ablate":
            edit = overview.ablation(scores, index)
            if edit is not None:
                become(current().add(edit))
            return
        layer, head = scores.layers[index], scores.heads[index]
        if layer is not None and head is not None:
            become(replace(current(), head=(layer, head)))
            go("attention")

    bars(figure, key="parts", on_act=act, pickable=True)
    foot(view.foot, key="parts-foot")


def _head(view: View, key: str) -> None:
    prose(*view.sentences, key=f"{key}-title", title=view.title)


def _chosen(desk: Desk) -> Callable[[str, int], None]:
    def act(name: str, row: int) -> None:
        become(replace(current(), **{name: desk.reading.top[row].text}))

    return act


PAGE = Page("Overview", "", render, order=10)
