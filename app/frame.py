"""The frame of every page: navigation, prompt, model, tokens, metric and plan; then the page.

Notable: the order is that of importance and of time. What needs no model is drawn at once; the
page starts only when the frame's reading, which every page needs, is there.
"""

from dataclasses import replace
from functools import partial
from typing import Final

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.navigation.page import Page as StreamlitPage

from app.components.bar import bar
from app.components.prose import prose
from app.components.strip import strip
from app.desk import (
    GOING,
    STATE,
    WANTED,
    WRONG,
    Desk,
    Wait,
    ask,
    become,
    callback,
    current,
    turn_to,
)
from app.fields import line
from app.host import Host
from app.links import arrive, depart
from app.page import Page
from app.process import host, pages
from app.results import AboutModel, Packed, Reading
from app.specs import About, Pack, Read
from app.state import Investigation
from app.style import STYLE, WORDMARK
from app.switch import example_of, notice, over
from app.views.frame import bar_view, model_chip, model_line, model_rows
from app.views.words import say, shown, typed

NOTICE: Final = "notice"


def show() -> None:
    """Draws the whole screen once."""
    st.set_page_config(page_title="workbench", layout="wide", initial_sidebar_state="collapsed")
    st.html(STYLE)
    st.logo(WORDMARK, size="medium")
    arrive()
    menu = _menu()
    chosen = st.navigation(list(menu.values()), position="top")
    wanted = st.session_state.pop(GOING, None)
    if wanted in menu:
        st.switch_page(menu[wanted])
    depart()
    if WRONG in st.session_state:
        prose(say(st.session_state[WRONG]), key="link-error", kind="error")
    chosen.run()


def _menu() -> dict[str, StreamlitPage]:
    found = sorted(pages().items(), key=lambda item: (item[1].order, item[0]))
    return {
        name: st.Page(
            partial(_screen, name, page),
            title=page.title,
            icon=page.icon or None,
            url_path=name,
            default=index == 0,
        )
        for index, (name, page) in enumerate(found)
    }


def _screen(name: str, page: Page) -> None:
    turn_to(host(), name)
    desk = _frame(host())
    if desk is not None:
        with st.container(key=f"page-{name}"):
            page.render(desk)


def _frame(server: Host) -> Desk | None:
    state = current()
    with st.container(key="frame", gap="small"):
        slot = _prompt_row(state)
        body = st.container(gap="small")
    with body:
        _other_model(server, state)
        about = ask(
            server,
            About(state.model),
            AboutModel,
            Wait("about", "loading the model", 120),
        )
        if about is None:
            _model_menu(slot, state, None, None)
            return None
        if about.name != state.model:
            st.session_state[NOTICE] = about.notice
        if about.name != state.model or _is_strange(state, about):
            _begin(about, state)
        reading = ask(server, _question(state), Reading, Wait("frame", "reading the prompt", 90))
        _model_menu(slot, state, about, reading)
        if reading is None:
            if state.plan:
                _bar(None, state)
            prose(say("Mend it above and press Enter; nothing else is lost."), key="mend")
            return None
        for key, told in (("notice", st.session_state.get(NOTICE)), ("left", notice(state))):
            if told:
                prose(say(told), key=key, kind="notice")
        _tokens(reading, state)
        _tray(server, reading, state)
    return Desk(server, state, about, reading)


def _other_model(server: Host, state: Investigation) -> None:
    """Goes over to the model asked for once it is there; until then nothing of this one is lost."""
    name = st.session_state.get(WANTED)
    if name in (None, state.model):
        return
    loading = Wait("wanted", f"loading {name}", 60)
    about = ask(server, About(name), AboutModel, loading)
    other = about and over(server, state, about)
    if about is None or other is None:
        prose(say(f"What follows is still {state.model}, as it was."), key="still")
        return
    st.session_state[NOTICE] = about.notice
    become(other)
    st.rerun()


def _question(state: Investigation) -> Read:
    return Read(
        model=state.model,
        prompt=state.prompt,
        target=state.target,
        foil=state.foil,
        pos=state.pos,
        plan=state.active,
    )


def _prompt_row(state: Investigation) -> DeltaGenerator:
    """The prompt, target and foil fields; returns the place of the model's menu."""
    with st.container(key="prompt-row", horizontal=True, vertical_alignment="bottom"):
        line(
            "prompt",
            "Prompt",
            _lines(state.prompt),
            on_text=_prompted,
            placeholder="What the model reads",
            hint="What the model reads. Write ↵ for a new line.",
        )
        answers = (("target", "Target", state.target), ("foil", "Foil", state.foil))
        for name, label, text in answers:
            line(
                name,
                label,
                "" if text is None else shown(text),
                on_text=partial(_answered, name),
                placeholder="automatic",
                hint="One token; · is a leading space. Left empty, the model's own choice.",
            )
        return st.container(key="model-slot", width="content")


def _model_menu(
    slot: DeltaGenerator, state: Investigation, about: AboutModel | None, reading: Reading | None
) -> None:
    name = state.model if about is None else about.name
    with slot, st.popover(model_chip(name, about, reading), width="content"):
        if about is not None:
            prose(
                say(model_line(about, reading.milliseconds if reading else None)),
                key="model-card",
                rows=model_rows(about),
            )
        line(
            "model",
            "Another model",
            state.model,
            on_text=_chose_model,
            hint="A name such as induction, a Hugging Face folder or hub id, or a .gguf file.",
        )
        with st.container(key="examples", horizontal=True, gap="small"):
            for index, example in enumerate(about.examples if about else ()):
                act = partial(example_of, example=example)
                st.button(example.name, key=f"example-{index}", on_click=callback(act))


def _tokens(reading: Reading, state: Investigation) -> None:
    edited = {at for edit in state.active for at in edit.positions}
    strip(
        reading.tokens,
        key="strip",
        selected=reading.pos,
        edits=sorted(edited),
        on_pick=lambda pos: become(
            replace(current(), pos=None if pos == len(reading.tokens) - 1 else pos)
        ),
    )


def _tray(server: Host, reading: Reading, state: Investigation) -> None:
    """The metric and the plan, and beside them the plan as files."""
    with st.container(key="tray", horizontal=True, vertical_alignment="center", gap="small"):
        with st.container(key="tray-bar"):
            _bar(reading, state)
        if state.plan:
            st.download_button(
                "Take along",
                partial(_packed, server, Pack(state.model, state.plan)),
                "plan.zip",
                "application/zip",
                key="take-along",
                on_click="ignore",
                help="The plan as files. Unpacked: workbench generate PROMPT --plan FOLDER",
            )


def _packed(server: Host, spec: Pack) -> bytes:
    """What the button gives, made when it is pressed.

    Raises:
        RuntimeError: If the plan cannot be packed.
    """
    job = server.submit(spec)
    job.ended.wait()
    if isinstance(job.result, Packed):
        return job.result.data
    raise RuntimeError(job.failure.message if job.failure else "The plan was not packed.")


def _bar(reading: Reading | None, state: Investigation) -> None:
    bar(
        bar_view(reading, state),
        key="bar",
        on_remove=lambda index: become(current().remove(index)),
        on_move=lambda index, to: become(current().move(index, to)),
        on_bypass=lambda: become(replace(current(), bypass=not current().bypass)),
    )


def _is_strange(state: Investigation, about: AboutModel) -> bool:
    """Whether the prompt is the one every session begins with, and none for this model."""
    known = {example.prompt for example in about.examples}
    return state.prompt == Investigation().prompt and state.prompt not in known


def _begin(about: AboutModel, state: Investigation) -> None:
    """Goes on with the model that is there, and with a prompt it knows."""
    st.session_state[STATE] = example_of(replace(state, model=about.name), about.examples[0])
    st.rerun()


def _prompted(text: str) -> None:
    become(current().ask(text.replace("↵", "\n")))


def _answered(key: str, text: str) -> None:
    become(replace(current(), **{key: typed(text) or None}))


def _chose_model(text: str) -> None:
    st.session_state[WANTED] = text.strip() or None


def _lines(text: str) -> str:
    return text.replace("\n", "↵")
