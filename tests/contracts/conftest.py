"""What the contract tests share."""

from collections.abc import Iterator

import pytest

from tests import tiny


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Functions without the checks of shapes, which each family has passed in another test."""
    with tiny.unchecked():
        yield
