"""What a process has one of: the host and the pages; where the app and the library meet.

Notable: the library is imported inside the functions, since a script must not wait for torch.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from app.host import Host, Runner
from app.page import Page
from app.state import DEFAULT_MODEL, always_here


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


def knows(model: str) -> bool:
    """Whether a link may name this model: it is here, by name, and can be loaded.

    Anything else a link could name is a download nobody asked for, or a folder of this machine.
    """
    if always_here(model):
        return True
    from workbench.models.assets import is_present, loadable_models

    return model in loadable_models() and is_present(model)


def workspace() -> Path:
    """Where long investigations rest: beside the assets."""
    from workbench.models.cache import workbench_cache

    return workbench_cache() / "investigations"


def _start() -> Runner:
    from app.jobs import start

    return start()


def _friendly(error: Exception) -> str | None:
    from workbench.core.errors import WorkbenchError

    return str(error) if isinstance(error, WorkbenchError) else None
