"""The event stream of a job, and who watches it: a job that only a closed tab waited for ends.

Notable: the browser says nothing when a tab closes, its connection ends. A reload or a sleeping
radio ends it too, so the lane leaves only if nobody watches for it again within a short grace.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from app.host import Host, Job

TICK: Final = (
    0.05  # seconds between two looks at a job; pushes closer than that cost more than they show
)
GRACE: Final = 2.0  # seconds in which a watcher may come back
Gone = Callable[[], Awaitable[bool]]


def routes(desk: Callable[[], Host], *, grace: float = GRACE) -> list[BaseRoute]:
    """The event stream of a job by its id; `lane` says for whom it is watched."""

    async def stream(request: Request) -> Response:
        host = desk()
        job = host.job(str(request.path_params["identity"]))
        if job is None:
            return JSONResponse({"error": "no such job"}, status_code=404)
        lane = request.query_params.get("lane", "")
        told = watched(host, job, lane, gone=request.is_disconnected, grace=grace)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(told, media_type="text/event-stream", headers=headers)

    return [Route("/api/jobs/{identity}", stream)]


async def watched(
    host: Host, job: Job, lane: str, *, gone: Gone, grace: float
) -> AsyncGenerator[str, None]:
    """The events of a job; when its watcher goes before its end, the lane leaves it."""
    if lane not in job.lanes:  # nobody can leave for another
        lane = ""
    job.watchers[lane] += 1
    try:
        async for event in events(job, gone):
            yield event
    finally:
        job.watchers[lane] -= 1
        if lane and not job.ended.is_set():
            asyncio.get_running_loop().call_later(grace, _leave, host, job, lane)


async def events(job: Job, gone: Gone) -> AsyncGenerator[str, None]:
    """The partial results of a job as server-sent events, several to an event; then its end."""
    seen = 0
    while not await gone():
        ended = job.ended.is_set()  # before reading: what is published after it is read next time
        fresh = job.partial[seen:]
        seen += len(fresh)
        if fresh:
            yield f"data: {json.dumps(fresh)}\n\n"
        if ended:
            yield f"event: end\ndata: {json.dumps(job.state.value)}\n\n"
            return
        await asyncio.sleep(TICK)


def _leave(host: Host, job: Job, lane: str) -> None:
    if not job.watchers[lane] and not job.ended.is_set():
        host.leave(job, lane)
