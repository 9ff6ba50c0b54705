"""The web application's life, its security headers, and the event stream of a job.

Notable: the port opens before torch is imported (the worker's thread does that); our own routes
need their own check of the Host header, which Streamlit's does not cover.
"""

import asyncio
import base64
import json
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
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.host import Host, Job
from app.process import first_model, host
from app.specs import About

TICK: Final = (
    0.05  # seconds between two looks at a job; pushes closer than that cost more than they show
)
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
    """The event stream of a job."""
    return [Route("/api/jobs/{identity}", _stream)]


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


async def _stream(request: Request) -> Response:
    desk: Host = host()
    job = desk.job(str(request.path_params["identity"]))
    if job is None:
        return JSONResponse({"error": "no such job"}, status_code=404)
    return StreamingResponse(
        events(job), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def events(job: Job) -> AsyncGenerator[str, None]:
    """The partial results of a job as server-sent events, several to an event; then its end."""
    seen = 0
    while True:
        ended = job.ended.is_set()  # before reading: what is published after it is read next time
        fresh = job.partial[seen:]
        seen += len(fresh)
        if fresh:
            yield f"data: {json.dumps(fresh)}\n\n"
        if ended:
            yield f"event: end\ndata: {json.dumps(job.state.value)}\n\n"
            return
        await asyncio.sleep(TICK)


def _inline_scripts() -> list[str]:
    page = Path(streamlit.__file__).parent / "static" / "index.html"
    return _SCRIPT.findall(page.read_text(encoding="utf-8"))
