"""Fixtures of the core's tests."""

from collections.abc import Iterator

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def unchecked() -> Iterator[None]:
    """A module without beartype: thousands of forwards, each three quarters checks."""
    with tiny.unchecked():
        yield
