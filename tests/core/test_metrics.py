"""Metrics read the answer position of each example, from a trace, bare logits or some columns."""

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.errors import ShapeError

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
