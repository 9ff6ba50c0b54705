"""The host with a worker that computes nothing: what it merges, cancels, keeps and survives."""

import threading
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from app.host import Cancelled, Host, Job, Results, State, size_of
from app.specs import About, Spec


@dataclass(frozen=True)
class Long(Spec):
    lets: ClassVar[int] = 2


SOON = 5.0  # seconds; waits end at once when the host works


@dataclass
class Worker:
    """Answers a spec by its name, when told to go on."""

    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    seen: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    busy: threading.Event = field(default_factory=threading.Event)

    def start(self):
        return self.run

    def run(self, spec: Spec, job: Job) -> object:
        self.seen.append(spec.model)
        self.threads.add(threading.get_ident())
        job.publish(["first", spec.model])
        self.busy.set()
        while not self.gate.acquire(timeout=0.01):
            job.check()
        job.check()
        if spec.model == "wrong":
            raise ValueError("yours to mend")
        if spec.model == "fault":
            raise RuntimeError("a fault")
        if spec.model == "death":
            raise SystemExit
        return f"answer to {spec.model}"


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture
def server(worker):
    def friendly(error: Exception) -> str | None:
        return str(error) if isinstance(error, ValueError) else None

    host = Host(worker.start, friendly=friendly, queue=4)
    host.open()
    yield host
    worker.gate.release(100)
    host.close()


def ask(server: Host, name: str, lane: str = "") -> Job:
    return server.submit(About(name), lane)


def test_a_question_is_answered_on_the_workers_one_thread(server, worker):
    worker.gate.release(2)
    one, two = ask(server, "a"), ask(server, "b")
    assert one.ended.wait(SOON)
    assert two.ended.wait(SOON)
    assert (one.state, one.result) == (State.DONE, "answer to a")
    assert worker.threads
    assert threading.get_ident() not in worker.threads
    assert len(worker.threads) == 1


def test_the_same_question_in_flight_is_asked_once(server, worker):
    one, two = ask(server, "a", "s1/view"), ask(server, "a", "s2/view")
    assert one is two
    worker.gate.release()
    assert one.ended.wait(SOON)
    assert worker.seen == ["a"]


def test_an_answered_question_is_answered_from_the_cache(server, worker):
    worker.gate.release()
    assert ask(server, "a").ended.wait(SOON)
    again = ask(server, "a")
    assert again.ended.is_set()
    assert again.result == "answer to a"
    assert worker.seen == ["a"]


def test_rapid_questions_in_a_lane_give_the_last_answer_only(server, worker):
    first = ask(server, "a", "s1/view")
    assert worker.busy.wait(SOON)
    second, third = ask(server, "b", "s1/view"), ask(server, "c", "s1/view")
    worker.gate.release(3)
    assert third.ended.wait(SOON)
    assert first.ended.wait(SOON)
    assert (first.state, second.state, third.state) == (
        State.CANCELLED,
        State.CANCELLED,
        State.DONE,
    )
    assert "b" not in worker.seen


def test_a_shared_job_goes_on_until_its_last_subscriber_leaves(server, worker):
    shared = ask(server, "a", "s1/view")
    ask(server, "a", "s2/view")
    assert worker.busy.wait(SOON)
    ask(server, "b", "s1/view")
    assert not shared.cancelling
    ask(server, "b", "s2/view")
    assert shared.cancelling


def test_a_cancelled_question_can_be_asked_again(server, worker):
    job = ask(server, "a")
    assert worker.busy.wait(SOON)
    server.cancel(job)
    again = ask(server, "a")
    assert again is not job
    worker.gate.release(2)
    assert again.ended.wait(SOON)
    assert (job.state, again.state) == (State.CANCELLED, State.DONE)
    assert job.partial == [["first", "a"]]


def test_a_waiting_question_is_cancelled_at_once(server, worker):
    ask(server, "a")
    assert worker.busy.wait(SOON)
    waiting = ask(server, "b")
    assert server.ahead(waiting) == 1
    server.cancel(waiting)
    assert waiting.state is State.CANCELLED


def test_leaving_a_lane_cancels_only_what_nobody_else_waits_for(server, worker):
    shared = ask(server, "a", "s1/view")
    ask(server, "a", "s2/view")
    assert worker.busy.wait(SOON)
    server.leave(shared, "s1/view")
    assert not shared.cancelling
    server.leave(shared, "s2/view")
    assert shared.ended.wait(SOON)
    assert shared.state is State.CANCELLED


def test_a_full_queue_is_a_message(server, worker):
    ask(server, "running")
    assert worker.busy.wait(SOON)
    for name in "abcd":
        ask(server, name)
    job = ask(server, "e")
    assert job.state is State.FAILED
    assert job.failure is not None
    assert job.failure.message == "Busy: 4 jobs are ahead."
    assert job.failure.retry


def test_an_error_of_ours_is_its_message_and_a_fault_an_id(server, worker, caplog):
    worker.gate.release(3)
    wrong, fault, fine = ask(server, "wrong"), ask(server, "fault"), ask(server, "a")
    assert fine.ended.wait(SOON)
    assert wrong.failure is not None
    assert wrong.failure.message == "yours to mend"
    assert not wrong.failure.retry
    assert fault.failure is not None
    assert fault.failure.retry
    assert "a fault" not in fault.failure.message
    identity = fault.failure.message.split()[-1].rstrip(".")
    assert identity in caplog.text
    assert fine.state is State.DONE


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_is_replaced_and_its_job_can_be_retried(server, worker):
    worker.gate.release(2)
    lost = ask(server, "death")
    assert lost.ended.wait(SOON)
    assert lost.failure is not None
    assert "Press Retry" in lost.failure.message
    after = ask(server, "a")
    assert after.ended.wait(SOON)
    assert after.state is State.DONE


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_cannot_start_fails_its_jobs_instead_of_spinning():
    starts = []

    def start():
        starts.append(1)
        raise SystemExit

    host = Host(start)
    job = host.submit(About("a"))
    host.open()
    assert job.ended.wait(SOON)
    host.close()
    assert job.state is State.FAILED
    assert len(starts) < 10


def test_short_questions_go_before_long_ones_but_not_forever(server, worker):
    ask(server, "running")
    assert worker.busy.wait(SOON)
    long = server.submit(Long("long"))
    short = [ask(server, name) for name in "abc"]
    assert (server.ahead(short[0]), server.ahead(long)) == (1, 3)
    worker.gate.release(5)
    assert all(job.ended.wait(SOON) for job in (long, *short))
    assert worker.seen == ["running", "a", "b", "long", "c"]


def test_lanes_that_are_cleared_cancel_what_only_they_waited_for(server, worker):
    shared, own = ask(server, "a", "s1/one"), ask(server, "b", "s1/two")
    ask(server, "a", "s2/one")
    server.clear(["s1/one", "s1/two", "s1/never"])
    assert own.ended.wait(SOON)
    assert own.state is State.CANCELLED
    assert not shared.cancelling


def test_a_failed_question_is_asked_again_by_its_lane_only_when_it_left(server, worker):
    worker.gate.release(100)
    job = ask(server, "wrong", "s1/view")
    assert job.ended.wait(SOON)
    assert [ask(server, "wrong", "s1/view") for _ in range(3)] == [job] * 3
    assert worker.seen == ["wrong"]
    assert ask(server, "wrong", "s2/view") is not job
    server.leave(job, "s1/view")
    again = ask(server, "wrong", "s1/view")
    assert again is not job


def test_whoever_sees_the_end_sees_the_result(server, worker):
    worker.gate.release(200)
    for number in range(100):
        job = ask(server, str(number))
        while job.state is not State.DONE:
            assert job.state is not State.FAILED
        assert job.result == f"answer to {number}"


def test_a_job_is_found_by_its_id_only(server, worker):
    job = ask(server, "a")
    assert server.job(job.id) is job
    assert server.job(job.digest) is None
    assert len(job.id) == 32


def test_results_are_dropped_by_bytes_the_least_recently_used_first():
    kept = Results(limit=3_000)
    for name in "abc":
        kept.put(name, np.zeros(1_000, "u1"))
    assert kept.get("a") is not None
    kept.put("d", np.zeros(1_000, "u1"))
    assert [kept.get(name) is not None for name in "abcd"] == [True, False, True, True]
    kept.put("huge", np.zeros(10_000, "u1"))
    assert kept.get("huge") is None
    assert kept.size == 3_000


def test_a_results_size_counts_what_is_inside_it():
    @dataclass(frozen=True)
    class Two:
        one: object
        other: object

    assert size_of(Two(np.zeros(100, "f4"), ("abc",))) > 400


def test_nothing_may_swallow_a_cancellation():
    assert not issubclass(Cancelled, Exception)
