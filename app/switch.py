"""Going over to another model: with the same prompt if it can read it, else with its own.

Notable: a prompt that had to be left behind is kept, with all that was asked about it, and comes
back with the model it was left with.
"""

from dataclasses import dataclass, replace
from typing import Final

import streamlit as st

from app.desk import Wait, ask
from app.host import Host
from app.results import AboutModel, Example, Readable
from app.specs import Reads
from app.state import Investigation

_LEFT: Final = "left_behind"  # model -> what was asked of it, until it comes back
_TOLD: Final = "left_behind_notice"


@dataclass(frozen=True)
class _Left:
    state: Investigation
    reader: str  # the model that could not read its prompt


@dataclass(frozen=True)
class _Notice:
    state: Investigation  # that it is about
    text: str


def over(server: Host, state: Investigation, about: AboutModel) -> Investigation | None:
    """The investigation to go on with on another model; nothing where that cannot be said yet."""
    left: dict[str, _Left] = st.session_state.setdefault(_LEFT, {})
    back = left.get(about.name)
    if back is None:
        wait = Wait("reads", "reading the prompt", 60)
        found = ask(server, Reads(about.name, state.prompt), Readable, wait)
        if found is None:
            return None
        if found.readable:
            left.pop(state.model, None)
            return replace(state, model=about.name, head=None, cell=None, plan=(), pos=None)
        return _exchanged(state, about, left)
    left.pop(about.name)
    left.pop(state.model, None)
    if back.reader == state.model:
        left[state.model] = _Left(state, about.name)
    return back.state


def notice(state: Investigation) -> str:
    """What to say of a prompt that was left behind, as long as its stand-in is on the screen."""
    told = st.session_state.get(_TOLD)
    if not isinstance(told, _Notice):
        return ""
    same = (told.state.model, told.state.prompt) == (state.model, state.prompt)
    return told.text if same else ""


def example_of(state: Investigation, example: Example) -> Investigation:
    """The same with an example's prompt and answer."""
    return replace(state.ask(example.prompt), target=example.target, foil=example.foil)


def _exchanged(state: Investigation, about: AboutModel, left: dict[str, _Left]) -> Investigation:
    left[state.model] = _Left(state, about.name)
    own = example_of(Investigation(model=about.name), about.examples[0])
    st.session_state[_TOLD] = _Notice(
        own,
        f"{about.name} cannot read your prompt, so this is an example of its own; yours comes back "
        f"with {state.model}.",
    )
    return own
