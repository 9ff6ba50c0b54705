"""What a piece of work takes at the most, by the profiler's account of the allocator."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from tests import tiny


def peak_of(work: Callable[[], object]) -> int:
    """The bytes it had allocated at once, its result included."""
    with tiny.unchecked():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            done = work()
        assert done is not None
    assert watched.profiler is not None
    results = watched.profiler.kineto_results
    assert results is not None
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]  # pyright: ignore[reportAttributeAccessIssue]
    total = most = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        total += change
        most = max(most, total)
    return most
