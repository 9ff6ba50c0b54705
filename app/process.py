"""What a process has one of: the host and the pages; where the app and the library meet."""

from collections.abc import Mapping
from functools import cache

from app.host import Host, Runner
from app.page import Page


@cache
def host() -> Host:
    """The process's host; made on first use, opened by the server (or a test)."""
    return Host(_start, friendly=_friendly)


@cache
def pages() -> Mapping[str, Page]:
    """The pages, by the names of their files."""
    from workbench.core.registry import discover

    return dict(discover("app.pages", "PAGE", Page))


def _start() -> Runner:
    from app.jobs import start

    return start()


def _friendly(error: Exception) -> str | None:
    from workbench.core.errors import WorkbenchError

    return str(error) if isinstance(error, WorkbenchError) else None
