"""The desk: what a page is handed. It asks the worker, changes the investigation, shows failures.

Notable: asking waits on the worker in the script's thread, drawing what is awaited in its final
shape; a click meanwhile starts another script thread, whose question cancels this one's lane.
State is changed by callbacks only (`change`), which run before the next script.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar, final

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.scriptrunner import StopException

from app.components.prose import prose
from app.host import Failure, Host, Job, State
from app.process import first_model
from app.results import AboutModel, Reading
from app.specs import Components, Lens, Read, Spec, Trajectory, digest
from app.state import Investigation
from app.views.frame import waiting
from app.views.words import Words, say

Result = TypeVar("Result")
Asked = TypeVar("Asked", Read, Lens, Trajectory, Components)
STATE: Final = "investigation"
CHANGED: Final = "changed"  # whether a callback of this run changed the investigation
WRONG: Final = "wrong_link"  # what could not be read of the latest link
WANTED: Final = "wanted_model"  # the model asked for, until it is there or given up
GOING: Final = "going"  # the page a callback asked for
_SESSION: Final = "session"
_PAGE: Final = "page"  # the page on the screen
_ASKED: Final = "asked"  # its views that asked something
_ANSWERED: Final = "answered"  # the views that show an answer
_STOPPED: Final = "stopped"  # what this session stopped: digest -> job
QUIET: Final = 0.12  # seconds before a wait is worth a word
LOOK: Final = 0.2  # seconds between two looks at a running job


def current() -> Investigation:
    """The session's investigation."""
    state = st.session_state.get(STATE)
    return state if isinstance(state, Investigation) else Investigation(model=first_model())


def become(state: Investigation) -> None:
    """Makes `state` the session's investigation; to be called from callbacks."""
    st.session_state[STATE] = state
    st.session_state[CHANGED] = True
    st.session_state.pop(WRONG, None)
    st.session_state.pop(WANTED, None)


@dataclass(frozen=True)
class Wait:
    """What stands in for an answer: its lane, what is computed, its height in pixels, its title."""

    view: str
    what: str
    height: int
    title: Words = ""


@final
@dataclass(frozen=True)
class Desk:
    """The investigation, what the frame already knows of it, and the way to the worker."""

    host: Host
    state: Investigation
    about: AboutModel
    reading: Reading

    def ask(self, spec: Spec, kind: type[Result], wait: Wait) -> Result | None:
        """The answer to `spec`, or nothing after showing why not."""
        _asked().add(wait.view)
        return ask(self.host, spec, kind, wait)

    def submit(self, spec: Spec, *, view: str) -> Job:
        """The job that answers `spec`, without waiting; the stopped one, where it was stopped."""
        _asked().add(view)
        return submit(self.host, spec, view)

    def stop(self, job: Job, view: str) -> None:
        """Stops a job for this session; to be called from callbacks."""
        stop(self.host, job, view)

    def resume(self, job: Job, view: str) -> None:
        """Lets a stopped or failed question be asked again; to be called from callbacks."""
        resume(self.host, job, view)


def lane(view: str) -> str:
    """The lane of a view of this session: a new question in it cancels the old one."""
    if _SESSION not in st.session_state:
        st.session_state[_SESSION] = secrets.token_hex(8)
    return f"{st.session_state[_SESSION]}/{view}"


def ask(host: Host, spec: Spec, kind: type[Result], wait: Wait) -> Result | None:
    """The answer to `spec`; meanwhile its shape and a Cancel button, at worst why there is none.

    Where the view was answered before, the old answer stays in place, faded, under a Cancel button
    that takes no room: a page must not jump at every click.
    """
    place = st.empty()  # always, so that what follows keeps its own
    job = submit(host, spec, wait.view)
    if stopped(job):
        _again(host, job, Failure(f"Stopped: {wait.what}.", retry=True), wait)
        return None
    if not job.ended.wait(QUIET):
        _wait(host, job, wait, place)
    if isinstance(job.result, kind):
        _answered().add(wait.view)
        return job.result
    if job.state is State.CANCELLED:
        return None  # by a newer question of this lane, whose script draws this place
    _again(host, job, job.failure or Failure(f"No answer: {wait.what}.", retry=True), wait)
    return None


def turn_to(host: Host, page: str) -> None:
    """Begins a page; what only the page before waited for is cancelled."""
    if st.session_state.get(_PAGE, page) != page:
        host.clear(lane(view) for view in _asked())
        _answered().difference_update(_asked())
        _asked().clear()
    st.session_state[_PAGE] = page


def page() -> str:
    """The name of the page on the screen."""
    return st.session_state.get(_PAGE, "")


def submit(host: Host, spec: Spec, view: str) -> Job:
    """The job that answers `spec`; where this session stopped it, the stopped one."""
    known = _stopped().get(digest(spec))
    job = None if known is None else host.job(known)
    return host.submit(spec, lane(view)) if job is None else job


def stop(host: Host, job: Job, view: str) -> None:
    """Stops a job for this session; waits a moment, so that the next screen shows the end."""
    _stopped()[job.digest] = job.id
    host.leave(job, lane(view))
    job.ended.wait(0.15)


def stopped(job: Job) -> bool:
    """Whether this session stopped that job."""
    return _stopped().get(job.digest) == job.id


def resume(host: Host, job: Job, view: str) -> None:
    """Lets a stopped or failed question be asked again; to be called from callbacks."""
    _stopped().pop(job.digest, None)
    host.leave(job, lane(view))


def _asked() -> set[str]:
    return st.session_state.setdefault(_ASKED, set())


def _answered() -> set[str]:
    return st.session_state.setdefault(_ANSWERED, set())


def _stopped() -> dict[str, str]:
    return st.session_state.setdefault(_STOPPED, {})


def _wait(host: Host, job: Job, wait: Wait, place: DeltaGenerator) -> None:
    late = wait.view in _answered()
    with place.container(key=f"late-{wait.view}" if late else None):
        if wait.title and not late:
            prose(key=f"wait-{wait.view}", kind="page", title=wait.title)
        with st.container(horizontal=True, vertical_alignment="center", key=f"pill-{wait.view}"):
            told = st.empty()
            stopping = (host, job, wait.view)
            st.button("Cancel", key=f"cancel-{wait.view}", on_click=stop, args=stopping)
        if not late:
            st.skeleton(height=wait.height)
    try:
        while not job.ended.wait(LOOK):
            told.caption(  # also where Streamlit may end this script
                waiting(
                    wait.what, ahead=host.ahead(job), done=job.done, total=job.total, eta=job.eta
                )
            )
    except StopException:  # the tab is gone; a rerun, which asks again, is another exception
        host.leave(job, lane(wait.view))
        raise
    place.empty()


def _again(host: Host, job: Job, failure: Failure, wait: Wait) -> None:
    if wait.title:
        prose(key=f"wait-{wait.view}", kind="page", title=wait.title)
    kind = "notice" if stopped(job) else "error"
    prose(say(failure.message), key=f"failure-{wait.view}", kind=kind)
    if failure.retry:
        st.button("Retry", key=f"retry-{wait.view}", on_click=resume, args=(host, job, wait.view))


def callback(act: Callable[[Investigation], Investigation]) -> Callable[[], None]:
    """A button's callback that replaces the investigation by `act` of it."""

    def run() -> None:
        become(act(current()))

    return run


def go(name: str) -> None:
    """Opens another page in the next script; to be called from callbacks."""
    st.session_state[GOING] = name


def question(desk: Desk, kind: type[Asked]) -> Asked:
    """The question of this kind about the investigation's prompt, answer, position and plan."""
    state = desk.state
    return kind(
        model=state.model,
        prompt=state.prompt,
        target=state.target,
        foil=state.foil,
        pos=state.pos,
        plan=state.active,
    )
