"""Rate and end of a long computation, from a clock of the test's own."""

from workbench.core.pace import Pace, Pacer


def test_rate_and_end_are_reckoned_in_tokens_of_this_session() -> None:
    now, told = [100.0], list[Pace]()
    pacer = Pacer(10, 1000, told.append, clock=lambda: now[0])
    pacer.find(4, 200)  # by an earlier session
    assert (pacer.pace().rate, pacer.pace().remaining) == (None, None)
    assert str(pacer.pace()) == "4/10 texts"
    now[0] = 105.0
    pacer.add(1, 300)
    pace = told[0]
    assert (pace.done, pace.total, pace.tokens, pace.total_tokens) == (5, 10, 500, 1000)
    assert (pace.seconds, pace.rate, pace.remaining) == (5.0, 60.0, 500 / 60)
    assert str(pace) == "5/10 texts, 60 tokens/s, 8 s left"


def test_nobody_needs_to_be_told() -> None:
    pacer = Pacer(1, 1, None, clock=lambda: 0.0)
    pacer.add(1, 1)
    assert pacer.pace().done == 1
    assert pacer.pace().rate is None  # no time has passed
