"""One running app and one Chromium for all browser tests; a fresh context for each.

Without a Chromium every test here is skipped, loudly, and fails in CI (see tests/conftest.py).
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from app.state import Investigation, to_query
from app.tools import browse

ALLOWED = ("_stcore/health", "_stcore/host-config")  # 404 below a deep link; Streamlit asks twice
LETTERS = Investigation(model="induction", prompt="fbhadgecfbhad", target="g", foil="a")


@dataclass
class Tab:
    """A page, and what went wrong on it."""

    page: Page
    address: str
    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def open(self, name: str = "overview", state: Investigation | None = None) -> "Tab":
        """Opens a page of the app as a link does, and waits until it has computed."""
        path = "" if name == "overview" else name
        query = urlencode(to_query(state)) if state is not None else ""
        self.page.goto(f"{self.address}/{path}?{query}")
        browse.settle(self.page, name)
        return self

    def settle(self, name: str = "") -> None:
        """Waits until what a click set off is on the screen."""
        self.page.wait_for_timeout(150)
        browse.settle(self.page, name)

    @property
    def metric(self) -> str:
        """The live metric."""
        return self.page.locator(".bar .value").inner_text().replace("\n", " ")


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A running app, which may connect to no other machine."""
    log: Path = tmp_path_factory.mktemp("app") / "log"
    with browse.serving(log, environment={"OMP_NUM_THREADS": "1"}) as where:
        yield where
    text = log.read_text()
    assert "connects to" not in text, text
    assert "Traceback" not in text, text


@pytest.fixture(scope="session")
def chrome() -> Generator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        found = browse.browser(playwright)
        yield found
        found.close()


@pytest.fixture
def new_tab(chrome: Browser, address: str):
    """Opens tabs, each in a context of its own; none may log an error or leave this machine."""
    contexts: list[BrowserContext] = []
    tabs: list[Tab] = []

    def make(theme: str = "light", size: tuple[int, int] = (1280, 800)) -> Tab:
        context = chrome.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if theme == "dark" else "light",
        )
        tab = Tab(context.new_page(), address)
        _watch(tab)
        contexts.append(context)
        tabs.append(tab)
        return tab

    yield make
    for context in contexts:
        context.close()
    for tab in tabs:
        assert tab.problems == []
        assert tab.foreign == []


@pytest.fixture
def tab(new_tab) -> Tab:
    """One tab, light and wide."""
    return new_tab()


def _watch(tab: Tab) -> None:
    def response(found) -> None:
        if found.status >= 400 and not found.url.split("?")[0].endswith(ALLOWED):
            tab.problems.append(f"{found.status} {found.url}")

    def console(message) -> None:
        missing = message.text.startswith("Failed to load resource")  # `response` judges those
        if message.type == "error" and not missing:
            tab.problems.append(message.text)

    def request(found) -> None:
        parts = urlsplit(found.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            tab.foreign.append(found.url)

    tab.page.on("response", response)
    tab.page.on("console", console)
    tab.page.on("request", request)
    tab.page.on("pageerror", lambda error: tab.problems.append(str(error)))
