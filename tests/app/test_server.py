"""The web application without a browser: headers, hosts, options, and the stream of a job."""

import asyncio
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import app
from app.host import Host, Job, State
from app.options import options
from app.server import middleware, routes
from app.specs import About
from app.stream import events, watched

FOLDER = Path(app.__file__).parent


@pytest.fixture
def client():
    page = Route("/", lambda _: PlainTextResponse("a page"))
    with TestClient(
        Starlette(routes=[page, *routes()], middleware=middleware()), base_url="http://localhost"
    ) as client:
        yield client


def test_every_response_carries_the_security_headers(client):
    for path in ("/", "/api/jobs/none"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "'unsafe-eval'" not in policy
        assert "script-src 'self' blob: 'sha256-" in policy


def test_a_foreign_host_is_refused(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    refused = client.get("/api/jobs/none", headers={"Host": "evil.example"})
    assert refused.status_code == 400


def test_an_unknown_job_is_not_found(client):
    assert client.get("/api/jobs/0123").status_code == 404


async def here() -> bool:
    return False


def read(job: Job) -> list[str]:
    async def all_of() -> list[str]:
        return [event async for event in events(job, here)]

    return asyncio.run(all_of())


def test_a_stream_is_what_was_published_and_then_the_end():
    job = Job(About("a"))
    job.publish([0, "<script>"])
    job.publish([1, "b"])
    job.finish(State.DONE)
    first, last = read(job)
    assert json.loads(first.removeprefix("data: ")) == [[0, "<script>"], [1, "b"]]
    assert last == 'event: end\ndata: "done"\n\n'


def test_a_stream_misses_nothing_that_was_published_before_the_end():
    async def both() -> list[str]:
        job = Job(About("a"))
        seen: list[str] = []

        async def watch() -> None:
            seen.extend([event async for event in events(job, here)])

        task = asyncio.create_task(watch())
        for number in range(5):
            job.publish(number)
            await asyncio.sleep(0.03)
        job.finish(State.CANCELLED)
        await task
        return seen

    *data, last = asyncio.run(both())
    assert [n for d in data for n in json.loads(d.removeprefix("data: "))] == [0, 1, 2, 3, 4]
    assert "cancelled" in last


def leave_after(host: Host, job: Job, lanes: list[str], *, back: bool = False) -> set[str]:
    """Watches for each lane, goes away, and comes back in time or not; who waits."""
    tabs = {"open": True}

    async def gone() -> bool:
        return not tabs["open"]

    async def watch(lane: str, until=gone) -> None:
        async for _ in watched(host, job, lane, gone=until, grace=0.0):
            tabs["open"] = False

    async def both() -> set[str]:
        again = asyncio.create_task(watch(lanes[0], here)) if back else None
        await asyncio.sleep(0)
        for lane in lanes:
            tabs["open"] = True
            await watch(lane)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        still = set(job.lanes)
        if again is not None:
            again.cancel()
        return still

    return asyncio.run(both())


@pytest.fixture
def waiting():
    """A host that never runs anything, and a job two lanes wait for, which has begun to write."""
    host = Host(lambda: lambda spec, job: None)
    job = host.submit(About("a"), "one/twin")
    host.submit(About("a"), "two/twin")
    job.publish("a word")
    return host, job


def test_a_closed_tab_leaves_its_job_which_ends_when_nobody_else_waits(waiting):
    host, job = waiting
    assert leave_after(host, job, ["one/twin"]) == {"two/twin"}
    assert not job.cancelling
    leave_after(host, job, ["two/twin"])
    assert job.state is State.CANCELLED


def test_a_watcher_that_comes_back_in_time_keeps_its_job(waiting):
    host, job = waiting
    assert leave_after(host, job, ["one/twin"], back=True) == {"one/twin", "two/twin"}


def test_nobody_leaves_for_another(waiting):
    host, job = waiting
    assert leave_after(host, job, ["nobody/twin", ""]) == {"one/twin", "two/twin"}


def test_the_app_listens_on_loopback_unless_told_otherwise():
    assert options([]) == {"server.port": 8501, "server.address": "127.0.0.1"}
    assert options(["--port", "9000"])["server.port"] == 9000


def test_the_shipped_configuration_is_closed():
    config = tomllib.loads((FOLDER / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert config["server"]["address"] == "127.0.0.1"
    assert config["server"]["allowedHosts"] == ["localhost", "127.0.0.1"]
    assert config["browser"]["gatherUsageStats"] is False
    kept = {"enableCORS", "enableXsrfProtection", "enableStaticServing", "enableAgentApi"}
    assert not kept & set(config["server"])  # at their safe defaults


def test_streamlit_finds_the_application_in_its_file():
    from streamlit.web.server.app_discovery import discover_asgi_app

    found = discover_asgi_app(FOLDER / "main.py")
    assert (found.is_asgi_app, found.import_string) == (True, "main:app")


def test_pages_views_and_components_need_no_torch():
    modules = ["app.frame", "app.server", *_modules("pages"), *_modules("views")]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent, timeout=60)


def _modules(folder: str) -> list[str]:
    files = (FOLDER / folder).glob("*.py")
    return [f"app.{folder}.{file.stem}" for file in files if file.stem != "__init__"]
