"""The host: one worker thread owns the model; everybody else submits a spec and reads plain data.

Notable: the same question in flight is asked once; a new question in a *lane* (one view of one
session) cancels the lane's previous one, so that rapid clicks give the last result only. What
failed is not asked again by the same lane until it leaves, else every rerun would. A long job
lets a few short ones that come later go first, never more, so that it starves nobody and is not
starved. A job's
terminal state is written last, after its result: whoever sees it sees everything. A supervisor
replaces a worker that died. The host knows neither torch nor Streamlit.
"""

import dataclasses
import logging
import secrets
import threading
import time
from bisect import insort_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, final

import numpy as np

from app.specs import Spec, digest

QUEUE: Final = 64  # jobs waiting
CACHE: Final = 512 * 2**20  # bytes of results
PAUSE: Final = 0.2  # seconds before a dead worker is replaced: a fault at start must not spin
REMEMBERED: Final = 512  # jobs and lanes that can still be looked up

_log = logging.getLogger("workbench.app")


class State(Enum):
    """Where a job is; the last three are the end."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class Failure:
    """Why a job has no result, in words for the screen."""

    message: str
    retry: bool = False  # whether the same question may succeed when asked again


class Cancelled(BaseException):
    """Raised inside a job at the first check after it was cancelled."""


@final
class Job:
    """One question in flight: written by the worker, read by script threads and the stream."""

    def __init__(self, spec: Spec) -> None:
        self.id = secrets.token_hex(16)  # 128 random bits: all that the stream route accepts
        self.spec, self.digest = spec, digest(spec)
        self.state = State.QUEUED
        self.done, self.total = 0, 0
        self.partial: list[object] = []  # only ever appended to
        self.result: object = None
        self.failure: Failure | None = None
        self.started = 0.0
        self.ended = threading.Event()
        self.lanes: set[str] = set()
        self.watchers: Counter[str] = Counter()  # open streams by lane; the server's loop counts
        self.turn = 0  # its place among those that wait, the lowest first
        self._cancel = threading.Event()

    def check(self) -> None:
        """To be called between layers, batches and tokens.

        Raises:
            Cancelled: If somebody asked this job to stop.
        """
        if self._cancel.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """Asks the job to stop at its next check; what it has published stays."""
        self._cancel.set()

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancel.is_set()

    def advance(self, done: int, total: int) -> None:
        """Says how far the job is, and stops here if it was cancelled."""
        self.done, self.total = done, total
        self.check()

    def publish(self, item: object) -> None:
        """Adds one partial result for whoever watches."""
        self.partial.append(item)

    @property
    def eta(self) -> float | None:
        """Seconds left, from the pace so far."""
        if not self.done or not self.total:
            return None
        return (time.monotonic() - self.started) / self.done * (self.total - self.done)

    def finish(
        self, state: State, *, result: object = None, failure: Failure | None = None
    ) -> None:
        """Ends the job; the state comes last, the event after it."""
        if self.ended.is_set():
            return
        self.result, self.failure = result, failure
        self.state = state
        self.ended.set()


Runner = Callable[[Spec, Job], object]


@final
class Results:
    """Finished results by digest, the least recently used dropped beyond a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: OrderedDict[str, tuple[object, int]] = OrderedDict()

    def get(self, key: str) -> object | None:
        """The result of that digest, if it is still here."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: str, result: object) -> None:
        """Keeps a result, unless it alone is larger than the limit."""
        size = size_of(result)
        if key in self._kept or size > self._limit:
            return
        self._kept[key] = (result, size)
        self._bytes += size
        while self._bytes > self._limit:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._bytes


@final
class Host:
    """The queue between many readers and one worker."""

    def __init__(
        self,
        start: Callable[[], Runner],
        *,
        friendly: Callable[[Exception], str | None] = lambda _: None,
        queue: int = QUEUE,
        cache: int = CACHE,
    ) -> None:
        """`start` runs on the worker's thread and returns what answers specs there.

        `friendly` gives the message of an error that is the user's to mend, nothing for a fault.
        """
        self._start, self._friendly, self._limit = start, friendly, queue
        self._lock = threading.Condition()
        self._queue: list[Job] = []  # in the order in which they will run
        self._asked = 0  # jobs that ever came
        self._flying: dict[str, Job] = {}  # queued or running, by digest
        self._lanes: OrderedDict[str, Job] = OrderedDict()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._results = Results(cache)
        self._running: Job | None = None
        self._stopping = False
        self._supervisor: threading.Thread | None = None

    def open(self) -> None:
        """Starts the worker and its supervisor; returns at once, and does nothing when open."""
        with self._lock:
            if self._supervisor is not None:
                return
            self._stopping = False
            self._supervisor = threading.Thread(
                target=self._supervise, name="supervisor", daemon=True
            )
        self._supervisor.start()

    def close(self) -> None:
        """Cancels what is in flight and ends the threads."""
        with self._lock:
            self._stopping = True
            for job in self._flying.values():
                job.cancel()
            self._lock.notify_all()
        if self._supervisor is not None:
            self._supervisor.join(timeout=5)
        self._supervisor = None

    def submit(self, spec: Spec, lane: str = "") -> Job:
        """The job that answers `spec`: a finished one, one already in flight, or a new one.

        Whatever this lane asked before and nobody else waits for is cancelled.
        """
        with self._lock:
            previous = self._lanes.pop(lane, None) if lane else None
            job = _failed(previous, spec) or self._found(spec) or self._enqueue(spec)
            if previous is not None and previous is not job:
                self._leave(previous, lane)
            if lane:
                job.lanes.add(lane)
                self._lanes[lane] = job
                _trim(self._lanes)
            self._jobs[job.id] = job
            _trim(self._jobs)
            return job

    def leave(self, job: Job, lane: str) -> None:
        """Ends a lane's interest in a job; it is cancelled if no other lane waits for it.

        A job that failed is forgotten with it, so that the lane may ask anew.
        """
        with self._lock:
            if self._lanes.get(lane) is job:
                del self._lanes[lane]
            self._leave(job, lane)

    def clear(self, lanes: Iterable[str]) -> None:
        """Ends the interest of several lanes in whatever they asked last."""
        with self._lock:
            for lane in lanes:
                job = self._lanes.pop(lane, None)
                if job is not None:
                    self._leave(job, lane)

    def cancel(self, job: Job) -> None:
        """Stops a job for everybody; a waiting one ends here, a running one at its next check."""
        with self._lock:
            job.cancel()
            if job.state is State.QUEUED:
                self._drop(job)
                job.finish(State.CANCELLED)

    def job(self, identity: str) -> Job | None:
        """The job with that id, while it is remembered."""
        with self._lock:
            return self._jobs.get(identity)

    def ahead(self, job: Job) -> int:
        """How many jobs will run before this one."""
        with self._lock:
            if job.state is not State.QUEUED or job not in self._queue:
                return 0
            return self._queue.index(job) + (self._running is not None)

    @property
    def bytes_kept(self) -> int:
        """What the results on hand take."""
        return self._results.size

    def _found(self, spec: Spec) -> Job | None:
        key = digest(spec)
        flying = self._flying.get(key)
        if flying is not None and not flying.cancelling:
            return flying
        result = self._results.get(key)
        if result is None:
            return None
        job = Job(spec)
        job.finish(State.DONE, result=result)
        return job

    def _enqueue(self, spec: Spec) -> Job:
        job = Job(spec)
        if len(self._queue) >= self._limit:
            ahead = len(self._queue)
            job.finish(State.FAILED, failure=Failure(f"Busy: {ahead} jobs are ahead.", retry=True))
            return job
        self._asked += 1
        job.turn = self._asked + spec.lets
        insort_left(self._queue, job, key=lambda waiting: waiting.turn)
        self._flying[job.digest] = job
        self._lock.notify_all()
        return job

    def _leave(self, job: Job, lane: str) -> None:
        job.lanes.discard(lane)
        if job.lanes or job.ended.is_set():
            return
        job.cancel()
        if job.state is State.QUEUED:
            self._drop(job)
            job.finish(State.CANCELLED)

    def _drop(self, job: Job) -> None:
        if job in self._queue:
            self._queue.remove(job)
        if self._flying.get(job.digest) is job:
            del self._flying[job.digest]

    def _supervise(self) -> None:
        while not self._stopping:
            worker = threading.Thread(target=self._work, name="worker", daemon=True)
            worker.start()
            worker.join()
            self._after_death()

    def _after_death(self) -> None:
        with self._lock:
            lost = [self._running] if self._running is not None else list(self._queue)
            self._running = None
            for job in lost:
                self._drop(job)
                message = "The worker had to be restarted. Press Retry."
                job.finish(State.FAILED, failure=Failure(message, retry=True))
            if not self._stopping:
                _log.error("the worker ended; starting another")
                self._lock.wait(timeout=PAUSE)

    def _work(self) -> None:
        run = self._start()
        while (job := self._next()) is not None:
            self._answer(job, run)

    def _next(self) -> Job | None:
        with self._lock:
            while not self._queue and not self._stopping:
                self._lock.wait()
            if self._stopping:
                return None
            job = self._running = self._queue.pop(0)
            job.started = time.monotonic()
            job.state = State.RUNNING
            return job

    def _answer(self, job: Job, run: Runner) -> None:
        try:
            job.check()
            result = run(job.spec, job)
        except Cancelled:
            self._end(job, State.CANCELLED)
        except Exception as error:  # noqa: BLE001 - the boundary: one bad question must not end the rest
            self._end(job, State.FAILED, failure=self._explain(error))
        else:
            self._end(job, State.DONE, result=result)

    def _end(
        self, job: Job, state: State, *, result: object = None, failure: Failure | None = None
    ) -> None:
        with self._lock:
            self._running = None
            if state is State.DONE:
                self._results.put(job.digest, result)
            if self._flying.get(job.digest) is job:
                del self._flying[job.digest]
        job.finish(state, result=result, failure=failure)

    def _explain(self, error: Exception) -> Failure:
        message = self._friendly(error)
        if message is not None:
            return Failure(message)
        identity = secrets.token_hex(4)
        _log.error("fault %s", identity, exc_info=error)
        told = f"Something broke inside the workbench. Its log has the details under {identity}."
        return Failure(told, retry=True)


def size_of(value: object) -> int:
    """About how many bytes a result takes: its arrays and texts, through its fields."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, str | bytes):
        return 50 + len(value)
    if isinstance(value, tuple | list):
        return 64 + sum(map(size_of, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return 64 + sum(size_of(value.__getattribute__(f.name)) for f in dataclasses.fields(value))
    return 32


def _failed(previous: Job | None, spec: Spec) -> Job | None:
    """What the lane asked last, if it was this and failed."""
    if previous is None or previous.state is not State.FAILED or previous.spec != spec:
        return None
    return previous


def _trim(table: "OrderedDict[str, Job]") -> None:
    while len(table) > REMEMBERED:
        table.popitem(last=False)
