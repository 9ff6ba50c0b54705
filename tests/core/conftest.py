"""Fixtures of the core's tests."""

from collections.abc import Iterator

import pytest

from tests import tiny


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without beartype: for many forwards, three quarters of which would be checks."""
    with tiny.unchecked():
        yield
