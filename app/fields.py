"""Fields that show the investigation: one that is to show another text is another widget.

Notable: writing a text into a widget that is there is a message sent once. It is lost when the next
script begins before the browser had it, and it is never sent to the same key on another page; then
the field is blank while the server thinks it is not, and the next click brings the old text back.
So the text goes along as the widget's default, with every message, and the key changes with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import streamlit as st

from app.desk import page

_FIELDS: Final = "fields"  # name -> its widget now


@dataclass(frozen=True)
class _Widget:
    page: str
    turn: int
    text: str  # what the investigation says, as of the latest script


def line(
    name: str,
    label: str,
    text: str,
    *,
    on_text: Callable[[str], None],
    placeholder: str = "",
    hint: str,
) -> None:
    """A field of one line that shows `text`; what is typed instead goes to `on_text`."""
    key = _key(name, text)
    st.text_input(
        label,
        text,
        key=key,
        on_change=_typed,
        args=(key, text, on_text),
        placeholder=placeholder,
        help=hint,
    )


def _key(name: str, text: str) -> str:
    """The key of the widget that shows `text`: the same while that is what was typed into it."""
    widgets: dict[str, _Widget] = st.session_state.setdefault(_FIELDS, {})
    last = widgets.get(name, _Widget(page(), 0, text))
    shows = st.session_state.get(f"{name}-{last.turn}", last.text)
    turn = last.turn + ((shows, last.page) != (text, page()))
    widgets[name] = _Widget(page(), turn, text)
    return f"{name}-{turn}"


def _typed(key: str, text: str, on_text: Callable[[str], None]) -> None:
    if st.session_state[key] != text:
        on_text(st.session_state[key])
