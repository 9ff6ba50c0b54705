"""Metrics read the answer position of each example, from a trace, bare logits or some columns."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import OptionError, ShapeError

MODEL = tiny.model("llama")
CONTRAST = wb.Contrast(
    clean=["abcab", "the cat"], corrupt=["xbcxb", "the dog"], target=["c", "s"], foil=["d", "x"]
)
IDS = {"target": torch.tensor(list(b"cs")), "foil": torch.tensor(list(b"dx"))}


def answers() -> torch.Tensor:
    """Logits after each prompt, each run alone."""
    rows = [wb.run(MODEL, prompt).logits[0, -1] for prompt in CONTRAST.clean]
    return torch.stack(rows)


def test_logit_difference_is_target_minus_foil() -> None:
    rows = torch.arange(2)
    expected = answers()[rows, IDS["target"]] - answers()[rows, IDS["foil"]]
    metric = wb.metrics.logit_difference(CONTRAST)
    for side in ("left", "right"):
        found = metric(wb.run(MODEL, CONTRAST.clean, padding_side=side))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (metric.name, metric.unit) == ("logit_difference", "logits")


def test_logit_and_log_probability_read_the_target() -> None:
    rows = torch.arange(2)
    trace = wb.run(MODEL, CONTRAST.clean)
    logit = wb.metrics.logit(CONTRAST)(trace)
    said = wb.metrics.log_probability(CONTRAST)(trace)
    torch.testing.assert_close(logit, answers()[rows, IDS["target"]], rtol=0, atol=1e-5)
    expected = answers().log_softmax(-1)[rows, IDS["target"]]
    torch.testing.assert_close(said, expected, rtol=0, atol=1e-5)


def test_some_columns_are_enough() -> None:
    metric = wb.metrics.logit_difference(CONTRAST).on(MODEL)
    assert metric.vocabulary is not None
    some = wb.run(MODEL, CONTRAST.clean, positions="last", vocabulary=metric.vocabulary.tolist())
    torch.testing.assert_close(metric(some), metric(wb.run(MODEL, CONTRAST.clean)))
    shuffled = metric.vocabulary.flip(0).tolist()
    other = wb.run(MODEL, CONTRAST.clean, positions="last", vocabulary=shuffled)
    torch.testing.assert_close(metric(other), metric(some))


def test_missing_columns_and_other_rows_are_refused() -> None:
    metric = wb.metrics.logit_difference(CONTRAST)
    with pytest.raises(ShapeError, match="columns"):
        metric(wb.run(MODEL, CONTRAST.clean, vocabulary=[1, 2]))
    with pytest.raises(ShapeError, match="2 rows"):
        metric(wb.run(MODEL, "abc"))


def test_bare_logits_are_read_at_their_last_column() -> None:
    contrast = wb.Contrast(clean="abc", corrupt="xbc", target="d", foil="e")
    metric = wb.metrics.logit_difference(contrast).on(MODEL)
    trace = wb.run(MODEL, "abc")
    torch.testing.assert_close(metric(trace.logits), metric(trace))


def test_a_metric_shows_itself_in_a_line() -> None:
    many = wb.Contrast(clean=["ab"] * 300, corrupt=["xb"] * 300, target="c", foil="d")
    shown = repr(wb.metrics.logit_difference(many))
    assert shown == (
        "logit_difference in logits, of Contrast(clean=['ab', …: 300], "
        "corrupt=['xb', …: 300], target='c', foil='d')"
    )


def test_a_function_of_answer_logits_is_a_metric() -> None:
    model = tiny.model("llama", torch.float64)
    same = wb.Contrast(CONTRAST.clean, CONTRAST.corrupt, target=["c", "c"], foil=["d", "d"])
    built_in = wb.metrics.logit(same)

    def own(logits: Tensor) -> Tensor:
        return logits[:, ord("c")]

    texts = same.clean
    cells = [wb.Intervention(f"blocks.{layer}.attn.hook_z", wb.ops.zero()) for layer in range(3)]
    ours, theirs = (wb.sweep(model, texts, cells, metric) for metric in (own, built_in))
    tiny.close(ours.changed, theirs.changed)
    assert "own" in ours.metric
    site = "blocks.1.hook_resid_post"
    for slope, other in zip(
        wb.gradients(model, texts, site, own).values(),
        wb.gradients(model, texts, site, built_in).values(),
        strict=True,
    ):
        tiny.close(slope, other)


@pytest.mark.usefixtures("unchecked")
def test_a_function_that_is_no_metric_is_refused_by_name() -> None:
    model, prompt = tiny.model("llama"), "abc"
    site: Any = "blocks.1.hook_resid_post"
    total: Any = torch.sum
    with pytest.raises(ShapeError, match=r"one number for each of 1 rows, got \(\)"):
        wb.gradients(model, prompt, site, total)
    wrong: Any = "logit"
    with pytest.raises(OptionError, match=r"one of wb.metrics, or a function of answer logits"):
        wb.gradients(model, prompt, site, wrong)
