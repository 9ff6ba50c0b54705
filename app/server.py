"""The web application's life, its security headers and its own routes.

Notable: the port opens before torch is imported (the worker's thread does that); our own routes
need their own check of the Host header, which Streamlit's does not cover.
"""

import asyncio
import base64
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import streamlit
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import stream
from app.process import first_model, host
from app.specs import About

LOOPBACK: Final = ("localhost", "127.0.0.1")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_log = logging.getLogger("workbench.app")


@asynccontextmanager
async def lifespan(_: object) -> AsyncGenerator[None]:
    """Opens the host while the server starts, loads the first model, and closes with it."""
    desk = host()
    desk.open()
    desk.submit(About(first_model()), "the start")
    try:
        yield
    finally:
        await asyncio.to_thread(desk.close)


def middleware() -> list[Middleware]:
    """A check of the Host header against DNS rebinding, and the security headers."""
    return [
        Middleware(SecurityHeaders, policy=policy(_inline_scripts())),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)),
    ]


def routes() -> list[BaseRoute]:
    """Our own, beside Streamlit's: the event stream of a job."""
    return stream.routes(host)


def on_script_error(error: Exception) -> bool:
    """Logs what a script broke on; the screen shows its type only (`showErrorDetails`)."""
    _log.error("a page failed", exc_info=error)
    return False


def policy(scripts: Sequence[str]) -> str:
    """The content security policy: this origin only, and the inline scripts of Streamlit's page."""
    digests = (base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' blob: {allowed}",  # inline components load as blobs
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )


class SecurityHeaders:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and its answer back with the headers."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self._policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, with_headers)


def _inline_scripts() -> list[str]:
    page = Path(streamlit.__file__).parent / "static" / "index.html"
    return _SCRIPT.findall(page.read_text(encoding="utf-8"))
