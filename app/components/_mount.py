"""How a component of ours is made: `NAME.js` and `NAME.css` beside its Python file, inline.

Notable: scripts and styles are files, so that editors and reviewers see them as what they are;
`_common.js` and `_common.css` go in front of each. Model text reaches the page by `textContent`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import streamlit as st
from streamlit.components.v2 import component
from streamlit.components.v2.types import ComponentRenderer

HERE: Final = Path(__file__).parent


def register(name: str) -> ComponentRenderer:
    """The component whose files are called `name`; to be registered once, at import."""
    return component(
        f"workbench_{name}",
        html='<div class="root"></div>',
        css=_both(name, "css"),
        js=_both(name, "js"),
    )


def fired(key: str, trigger: str) -> object:
    """What a component reported in the click being handled; nothing if it was another one."""
    state = st.session_state.get(key)
    return None if not isinstance(state, Mapping) else state.get(trigger)


def _both(name: str, kind: str) -> str:
    files = (HERE / f"_common.{kind}", HERE / f"{name}.{kind}")
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())
