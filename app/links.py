"""The address bar and the investigation, kept equal; long investigations rest in the workspace.

Notable: a navigation click drops the query, so the address is written again on each run. What is
in the address and is not what we last wrote came from outside (a link, Back, Forward) and wins.
What we write is never empty, so that Back to the first view is told from a navigation click.
"""

import os
import tempfile
from pathlib import Path
from typing import Final

import streamlit as st

from app.codec import StateError
from app.desk import WRONG, become, current
from app.process import knows, workspace
from app.state import SHORT_KEYS, Investigation, digest, from_query, to_json, to_query

_WRITTEN: Final = "written_query"


def arrive() -> None:
    """Takes over the address if it came from outside; what is wrong with it stands in `WRONG`."""
    query = {key: st.query_params[key] for key in st.query_params if key in SHORT_KEYS}
    if not query or query == st.session_state.get(_WRITTEN):
        return
    st.session_state[_WRITTEN] = query
    try:
        state = from_query(query, stored, knows)
    except StateError as error:
        st.session_state[WRONG] = (
            f"The link could not be read, and nothing is taken from it. {error}"
        )
    else:
        become(state or Investigation())


def depart() -> None:
    """Writes the investigation into the address where it differs."""
    state = current()
    query = to_query(state, knows)
    if "s" in query:
        store(to_json(state), digest(state))
    ours = {key: st.query_params[key] for key in st.query_params if key in SHORT_KEYS}
    if ours != query:
        st.query_params.from_dict(query)
    st.session_state[_WRITTEN] = query


def store(text: str, name: str) -> None:
    """Keeps an investigation under its digest, written whole or not at all."""
    file = workspace() / f"{name}.json"
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    Path(temporary).replace(file)


def stored(name: str) -> str | None:
    """The text kept under a digest, which the caller has checked to be one."""
    file = workspace() / f"{name}.json"
    return file.read_text(encoding="utf-8") if file.is_file() else None
