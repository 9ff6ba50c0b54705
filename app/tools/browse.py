"""A running app and a browser on it: for the screenshots and for the browser tests.

Notable: the app runs in a process of its own, in which a connection to another machine raises.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.error import URLError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

MAIN: Final = Path(__file__).resolve().parents[1] / "main.py"
FLAGS: Final = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
)
NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
OPENS: Final = 60  # seconds until the port is open
SETTLES: Final = 60_000  # milliseconds until a page has computed what it shows
OFFLINE: Final = """
import sys
def gate(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        if arguments[1][0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"the app connects to {arguments[1][0]}")
sys.addaudithook(gate)
"""


def chromium() -> str | None:
    """The path of a Chromium, if this machine has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def free_port() -> int:
    """A port nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(log: Path, *, environment: dict[str, str] | None = None) -> Generator[str]:
    """Runs the app, offline, on a free port; gives its address.

    Raises:
        RuntimeError: If it does not open its port in time.
    """
    port = free_port()
    start = f"{OFFLINE}\nimport runpy; sys.argv = [{str(MAIN)!r}, '--port', '{port}']\n"
    start += f"runpy.run_path({str(MAIN)!r}, run_name='__main__')"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=MAIN.parents[1],
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, process, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def browser(playwright: "Playwright") -> "Browser":
    """A headless Chromium of this machine.

    Raises:
        RuntimeError: If there is none.
    """
    path = chromium()
    if path is None:
        raise RuntimeError(f"No Chromium on the path (looked for {', '.join(NAMES)}); install it.")
    return playwright.chromium.launch(executable_path=path, args=list(FLAGS))


def settle(page: "Page", name: str = "") -> None:
    """Waits until a page has run, computed and drawn."""
    page.wait_for_selector("[data-testid=stApp]", timeout=SETTLES)
    page.wait_for_function(_SETTLED, arg=f".st-key-page-{name}" if name else "", timeout=SETTLES)
    page.wait_for_timeout(250)


_SETTLED: Final = """selector => {
  const app = document.querySelector('[data-testid=stApp]')
  if (!app || app.dataset.testScriptState !== 'notRunning') return false
  if (document.querySelector('[data-testid=stSkeleton], [data-stale=true]')) return false
  const ours = [...document.querySelectorAll('[data-testid=stBidiComponentIsolated]')]
  if (ours.length < (selector ? 5 : 1)) return false
  if (!ours.every(n => n.shadowRoot?.querySelector('.root')?.childElementCount)) return false
  const twin = [...document.querySelectorAll('.st-key-twin *')].map(n => n.shadowRoot)
  const writing = twin.some(n => n?.querySelector('.stop:not([hidden])'))
  return !writing && (!selector || !!document.querySelector(selector))
}"""


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + OPENS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"The app did not open {address}:\n{log.read_text()[-2000:]}")
