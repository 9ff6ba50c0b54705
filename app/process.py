"""What a process has one of: the host and the pages; where the app and the library meet."""

import os
from collections.abc import Mapping
from functools import cache

from app.host import Host, Runner
from app.page import Page
from app.state import DEFAULT_MODEL


@cache
def host() -> Host:
    """The process's host; made on first use, opened by the server (or a test)."""
    return Host(_start, friendly=_friendly)


@cache
def pages() -> Mapping[str, Page]:
    """The pages, by the names of their files."""
    from workbench.core.registry import discover

    return dict(discover("app.pages", "PAGE", Page))


def first_model() -> str:
    """The model a new session begins with: what `workbench app --model` asked for, if anything."""
    return os.environ.get("WORKBENCH_MODEL") or DEFAULT_MODEL


def _start() -> Runner:
    from app.jobs import start

    return start()


def _friendly(error: Exception) -> str | None:
    from workbench.core.errors import WorkbenchError

    return str(error) if isinstance(error, WorkbenchError) else None
