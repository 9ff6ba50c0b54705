"""The app's own process state, opened once: the host with the built-in model, no download."""

from collections.abc import Iterator

import pytest

from app.host import Host
from app.process import host


@pytest.fixture(scope="session")
def opened() -> Iterator[Host]:
    """The process's host, with its worker running."""
    server = host()
    server.open()
    yield server
    server.close()
