"""What all tests share: no network, no random examples, the pulled model, and what is missing.

A test that needs a pulled asset is marked `asset` (the default model) or `asset("movie-reviews")`;
one that drives the app is marked `browser`. Where what they need is missing they are skipped, and
the summary says so in red; with CI=true they fail.
"""

import os
import shutil
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

import workbench as wb
from tests import tiny
from workbench.models.assets import DEFAULT, is_present
from workbench.models.transformer import Transformer

CI = os.environ.get("CI", "").lower() == "true"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

# Derandomised, so that a red gate is red again on the next run; no test judges wall time.
settings.register_profile("gate", max_examples=50, derandomize=True, deadline=None)
settings.load_profile("gate")


def forbid_network(event: str, arguments: tuple[object, ...]) -> None:
    """Raises when anything in the tests' process connects to another machine."""
    if event != "socket.connect" or not isinstance(address := arguments[1], tuple):
        return
    if address[0] not in LOOPBACK:
        message = f"a test connects to {address[0]}; tests use what was pulled before"
        raise RuntimeError(message)


sys.addaudithook(forbid_network)


def missing_for(item: pytest.Item) -> Iterator[str]:
    """What a test needs that this machine does not have, each with what to do about it."""
    for marker in item.iter_markers("asset"):
        for name in marker.args or (DEFAULT,):
            if not is_present(name):
                yield f"asset {name!r} is missing; run `workbench pull {name}`"
    if item.get_closest_marker("browser") and not any(map(shutil.which, CHROMIUM)):
        yield f"no Chromium on the path (looked for {', '.join(CHROMIUM)}); install it"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that lacks what it needs; fails it in CI."""
    for reason in missing_for(item):
        if CI:
            pytest.fail(reason, pytrace=False)
        pytest.skip(f"NOT RUN: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says in red how many tests did not run for want of an asset or a browser."""
    skipped = terminalreporter.getreports("skipped")
    n_missing = sum("NOT RUN" in str(report.longrepr) for report in skipped)
    if n_missing:
        terminalreporter.write_line(
            f"{n_missing} TESTS DID NOT RUN: an asset or Chromium is missing; see below.", red=True
        )


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium; only for tests marked `browser`."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert path, "mark this test `browser`"
    return path


@pytest.fixture(scope="session")
def default_model() -> Transformer:
    """The pulled default model, loaded once; only for tests marked `asset`."""
    assert is_present(DEFAULT), "mark this test `asset`"
    return wb.load(DEFAULT)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without beartype: for wrong kinds, and for many forwards, which would mostly be checks."""
    with tiny.unchecked():
        yield
