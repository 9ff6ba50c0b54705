"""What is left of the activations that made a text: streamed, and at sites that have keys."""

from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.errors import CancelledError, NeverActedError, UnfinishedError

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
PROMPTS = ["abcdef", "xy", "mno"]
TOGETHER = ["the quick brown fox " + text for text in PROMPTS]
POST = "blocks.1.hook_resid_post"
SCORES, PATTERN = "blocks.*.attn.hook_attn_scores", "blocks.*.attn.hook_pattern"
WAYS: dict[str, dict[str, Any]] = {
    "cached": {},
    "in full": {"use_cache": False},
    "chunks of 1": {"prefill_chunk": 1},
    "chunks of 3": {"prefill_chunk": 3},
    "nothing shared": {"share_prefix": False},
}
ways = pytest.mark.parametrize("way", WAYS)


def push(seed: int, **options: Any) -> wb.Intervention:
    return wb.Intervention(POST, wb.ops.add(tiny.normal(24, seed=seed)), **options)


def finished(made: wb.Generation, row: int, plan: Any, model: wb.Model, sites: Any) -> wb.Trace:
    """A run over the finished text of a row."""
    batch = tiny.batch([made.prompt[row] + made.tokens[row]], [len(made.prompt[row])])
    return wb.run(model, batch, plan=plan, record=sites)


# --- streams ------------------------------------------------------------------------------------


@kinds
@ways
def test_a_stream_gives_the_generation_when_it_is_over(kind: str, way: str) -> None:
    model, plans = tiny.model(kind), [[push(1)], [push(2, positions="generated")], []]
    options: Any = {"plans": plans, "record": [POST, PATTERN], "max_new_tokens": [3, 6, 4]}
    options |= WAYS[way]
    stream = wb.generate(model, PROMPTS, stream=True, **options)
    pieces = list(stream)
    made, whole = stream.result(), wb.generate(model, PROMPTS, **options)
    assert stream.result() is made
    assert vars(made).keys() == vars(whole).keys()
    for name in ("texts", "tokens", "log_probabilities", "finish", "prompt", "receipts"):
        assert vars(made)[name] == vars(whole)[name]
    assert set(made.activations) == set(whole.activations)
    for site, values in whole.activations.items():
        for one, other in zip(made[site], values, strict=True):
            assert tiny.same_bytes(one, other)
    for row in range(3):
        assert "".join(str(piece) for piece in pieces if piece.row == row) == made.texts[row]


def test_a_stream_has_no_result_before_its_end_or_after_an_error() -> None:
    model = tiny.model()
    stream = wb.generate(model, "abc", max_new_tokens=3, stream=True)
    for _ in range(3):
        with pytest.raises(UnfinishedError, match="read all of its pieces first"):
            stream.result()
        next(stream)
    with pytest.raises(UnfinishedError):
        stream.result()  # it has still to see whether every intervention acted
    assert list(stream) == []
    assert list(stream) == []
    assert len(stream.result().tokens[0]) == 3

    never = [push(1, positions="generated")]
    stream = wb.generate(model, "abc", plan=never, max_new_tokens=1, stream=True)
    with pytest.raises(NeverActedError):
        list(stream)
    assert list(stream) == []
    with pytest.raises(UnfinishedError, match=r"an error or close\(\) ended"):
        stream.result()


def test_a_stream_that_was_cancelled_has_no_result() -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 100:
            raise CancelledError("enough")

    stream = wb.generate(tiny.model(), "abc", check=check, record=POST, stream=True)
    with pytest.raises(CancelledError):
        list(stream)
    with pytest.raises(UnfinishedError):
        stream.result()


def test_what_a_stream_recorded_has_gradients_even_where_the_reader_has_none() -> None:
    stream = wb.generate(tiny.model(), "abc", max_new_tokens=2, record=POST, stream=True)
    with torch.inference_mode():
        list(stream)
    assert not stream.result()[POST][0].is_inference()


# --- scores and patterns ------------------------------------------------------------------------


@kinds
@ways
@pytest.mark.parametrize("prompts", [PROMPTS, TOGETHER], ids=["apart", "alike"])
def test_scores_and_patterns_are_those_of_the_finished_text(
    kind: str, way: str, prompts: list[str]
) -> None:
    model, sites = tiny.model(kind), [SCORES, PATTERN, POST]
    plans: Any = [
        [push(1, positions="generated")],
        [wb.Intervention(PATTERN, wb.ops.scale(0.5), positions=[0, -1], heads=[1])],
        [],
    ]
    made = wb.generate(
        model, prompts, plans=plans, record=sites, max_new_tokens=[3, 5, 4], **WAYS[way]
    )
    for row, plan in enumerate(plans):
        trace = finished(made, row, plan, model, sites)
        assert set(made.activations) == set(trace)
        for site, value in trace.items():
            assert made[site][row].shape == value[0].shape
            tiny.close(made[site][row], value[0], 2e-5)  # -inf equals itself
    n = len(made.prompt[1] + made.tokens[1])
    pattern = made["blocks.0.attn.hook_pattern"][1]
    assert pattern.shape == (model.sizes.n_heads, n, n)
    changed = made["blocks.2.attn.hook_pattern"][1].sum(-1)
    tiny.close(changed[0], torch.ones(n), 1e-5)
    assert float(changed[1, 0]) == pytest.approx(0.5, abs=1e-6)


@kinds
@ways
def test_what_a_plan_writes_ahead_of_a_query_is_not_recorded(kind: str, way: str) -> None:
    """A run shows it, though nobody reads it; steps of a generation cannot."""
    model, sites = tiny.model(kind), [SCORES, PATTERN]
    plan = [
        wb.Intervention(SCORES, wb.ops.zero()),
        wb.Intervention(PATTERN, wb.ops.add(torch.tensor(0.1))),
    ]
    made = wb.generate(model, PROMPTS, plan=plan, record=sites, max_new_tokens=4, **WAYS[way])
    for row in range(3):
        for site, value in finished(made, row, plan, model, sites).items():
            fill = 0.0 if "pattern" in str(site) else float("-inf")
            ahead = torch.ones(value.shape[-2:], dtype=torch.bool).triu(1)
            assert bool((value[0].masked_select(ahead) != fill).any())
            tiny.close(made[site][row], value[0].masked_fill(ahead, fill), 2e-5)


@kinds
def test_recording_scores_changes_no_row(kind: str) -> None:
    model = tiny.model(kind)
    plain = wb.generate(model, TOGETHER, max_new_tokens=4)
    made = wb.generate(model, TOGETHER, max_new_tokens=4, record=SCORES)
    assert made.tokens == plain.tokens
    for one, other in zip(made.log_probabilities, plain.log_probabilities, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@kinds
@ways
def test_keys_are_found_where_rows_have_gaps(kind: str, way: str) -> None:
    """After a shared beginning, rows of other lengths stand with pads between."""
    model = tiny.model(kind)
    plan = [wb.Intervention(PATTERN, wb.ops.scale(0.0), keys=[1, 21], optional=True)]
    made = wb.generate(model, TOGETHER, plan=plan, max_new_tokens=5, **WAYS[way])
    for row, prompt in enumerate(TOGETHER):
        alone = wb.generate(model, prompt, plan=plan, max_new_tokens=5)
        assert alone.tokens[0] == made.tokens[row]
        assert alone.log_probabilities[0] == pytest.approx(made.log_probabilities[row], abs=1e-5)
