"""A trace is a read-only mapping of what one run left."""

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.errors import NotRecordedError, UnknownNameError
from workbench.core.sites import Site

MODEL = tiny.model()
POST = Site("blocks.{}.hook_resid_post", 1)
ROWS = [[1, 2, 3], [4, 5]]
TRACE = wb.run(MODEL, ROWS, record=[POST, "hook_embed"])


def test_activations_are_found_by_site_and_by_name() -> None:
    assert TRACE[POST] is TRACE[str(POST)]
    assert TRACE[POST].shape == (2, 3, 24)
    assert list(TRACE) == [Site("hook_embed"), POST]
    assert len(TRACE) == 2
    assert POST in TRACE
    assert str(POST) in TRACE
    assert "blocks.0.hook_resid_post" not in TRACE
    assert 7 not in TRACE
    assert dict(TRACE.items())[POST] is TRACE[POST]


def test_what_was_not_recorded_says_how_to() -> None:
    with pytest.raises(
        NotRecordedError, match=r"hook_resid_pre was not recorded; pass it in record"
    ):
        _ = TRACE["blocks.0.hook_resid_pre"]
    with pytest.raises(UnknownNameError, match="No site named 'resid'"):
        _ = TRACE["resid"]


def test_it_does_not_change() -> None:
    with pytest.raises(TypeError):
        TRACE.activations[POST] = torch.zeros(1)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(AttributeError):
        TRACE.plan = wb.Plan()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("side", ["left", "right"])
def test_answer_logits_are_those_of_each_row_s_last_token(side: str) -> None:
    alone = torch.cat([wb.run(MODEL, [row]).logits[:, -1] for row in ROWS])
    for positions in (None, "last", [0, -1], [-1]):
        trace = wb.run(MODEL, ROWS, padding_side=side, positions=positions)  # pyright: ignore[reportArgumentType]
        tiny.close(trace.answer_logits, alone, 1e-5)


def test_answer_logits_need_the_last_position() -> None:
    with pytest.raises(NotRecordedError, match="ask for positions='answer'"):
        _ = wb.run(MODEL, ROWS, positions=0).answer_logits


def test_logits_that_were_not_computed_say_so() -> None:
    trace = wb.run(MODEL, ROWS, record=POST, logits=False)
    for read in (lambda: trace.logits, lambda: trace.answer_logits):
        with pytest.raises(NotRecordedError, match="leave out logits=False"):
            read()


def test_the_batch_tells_pads_from_tokens() -> None:
    assert TRACE.batch.tokens.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert TRACE.batch.real is not None
    assert TRACE.batch.real.tolist() == [[True] * 3, [True, True, False]]


def test_a_trace_is_equal_to_itself_alone() -> None:
    other = wb.run(MODEL, ROWS, record=[POST, "hook_embed"])
    assert other != TRACE
    assert len({TRACE, other, TRACE}) == 2


def test_it_shows_itself_in_a_line() -> None:
    model = tiny.model()
    trace = wb.run(model, [[1, 2, 3], [4]], record="blocks.*.hook_resid_post")
    told = "2 x 3 tokens, logits (2, 3, 258), 3 sites recorded, no interventions)"
    assert repr(trace) == f"Trace({model.name!r}, {told}"
