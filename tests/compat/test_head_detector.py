"""Head detection: TransformerLens 2.18's scores, and where it was wrong."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.compat.standin import BOTH, LN, RMS, Golden, Standin, close
from workbench.compat.transformer_lens import head_detector
from workbench.compat.transformer_lens.head_detector import detect_head
from workbench.core.errors import OptionError, PromptError, ShapeError, UnknownNameError

TOKENS = torch.tensor([[5, 7, 5, 7, 9]])
TEXT = "abcabc"


def reading(gold: Golden) -> Standin:
    """The model, for which every text is the golden tokens."""
    model = Standin(gold.weights, gold.model.cfg, gold.model.engine)
    model.fixed = gold.tokens["repeated"]
    return model


@pytest.mark.parametrize("gold", BOTH, ids=["ln", "rms"])
@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("kind", head_detector.HEAD_NAMES)
def test_scores_are_those_of_the_classic(gold: Golden, measure: Any, kind: Any) -> None:
    want = gold.expected("detect")
    for bos, current in itertools.product((False, True), repeat=2):
        scores = detect_head(
            reading(gold),
            "",
            kind,
            exclude_bos=bos,
            exclude_current_token=current,
            error_measure=measure,
        )
        # "abs" is rounded to a thousandth, where a last digit may turn
        tolerance = 1.1e-3 if measure == "abs" else 1e-5
        close(scores, want[f"{measure}_{kind}_{int(bos)}{int(current)}"], tolerance)


@pytest.mark.parametrize("gold", BOTH, ids=["ln", "rms"])
def test_a_pattern_of_ones_own_scores_the_heads_asked_for(gold: Golden) -> None:
    want = gold.expected("detect")
    for heads in ([(0, 1), (1, 3)], {0: [1], 1: [3]}):
        scores = detect_head(reading(gold), "", want["pattern"], heads=heads)
        close(scores, want["mul_own"], 1e-5)
        assert int((scores == -1).sum()) == 6
    scores = detect_head(reading(gold), "", want["pattern"], [(0, 1), (1, 3)], error_measure="abs")
    close(scores, want["abs_own"], 1.1e-3)


def test_patterns_are_those_of_their_heads() -> None:
    previous = head_detector.get_previous_token_head_detection_pattern(TOKENS)
    assert previous.nonzero().tolist() == [[1, 0], [2, 1], [3, 2], [4, 3]]
    duplicate = head_detector.get_duplicate_token_head_detection_pattern(TOKENS)
    assert duplicate.nonzero().tolist() == [[2, 0], [3, 1]]
    induction = head_detector.get_induction_head_detection_pattern(TOKENS)
    assert induction.nonzero().tolist() == [[2, 1], [3, 2]]


def test_a_head_that_is_the_pattern_scores_one() -> None:
    wanted = head_detector.get_previous_token_head_detection_pattern(TOKENS)
    patterns = torch.zeros(4, 5, 5)
    patterns[1] = wanted
    patterns[1, 0, 0] = 1.0  # the first token has no other
    cache = {("pattern", 0): patterns}
    model = Standin(LN.weights, LN.model.cfg)
    model.fixed = TOKENS
    scores = detect_head(
        model, "", "previous_token_head", [(0, 1)], cache, exclude_current_token=True
    )
    assert scores[0, 1] == 1.0


def test_a_cache_handed_in_stays_as_it_is() -> None:  # trap 24
    model = reading(LN)
    cache = model.run_with_cache(model.fixed, remove_batch_dim=True)[1]
    before = cache["pattern", 1].clone()
    for measure in ("mul", "abs"):
        options: dict[str, Any] = {"exclude_bos": True, "exclude_current_token": True}
        detect_head(model, "", "induction_head", cache=cache, **options, error_measure=measure)
    assert torch.equal(cache["pattern", 1], before)


def test_a_list_of_texts_keeps_the_options() -> None:  # trap 24
    model = Standin(RMS.weights, RMS.model.cfg, RMS.model.engine)
    options: dict[str, Any] = {"exclude_bos": True, "heads": [(1, 2)], "error_measure": "abs"}
    one = detect_head(model, TEXT, "induction_head", **options)
    assert torch.equal(detect_head(model, [TEXT], "induction_head", **options), one)
    other = detect_head(model, "xyzzy", "induction_head", **options)
    both = detect_head(model, [TEXT, "xyzzy"], "induction_head", **options)
    close(both, (one + other) / 2)


def test_supported_heads_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    head_detector.get_supported_heads()
    assert "'induction_head'" in capsys.readouterr().out


def wrong(**changes: Any) -> Tensor:
    model = Standin(LN.weights, LN.model.cfg, LN.model.engine)
    given: dict[str, Any] = {"seq": TEXT, "detection_pattern": "induction_head", **changes}
    with tiny.unchecked():
        return detect_head(model, **given)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"error_measure": "sum"}, OptionError, "'abs' or 'mul'"),
        ({"detection_pattern": "induction"}, UnknownNameError, "induction_head"),
        ({"detection_pattern": torch.ones(6, 6)}, ShapeError, "lower triangular"),
        ({"detection_pattern": torch.ones(5, 5).tril()}, ShapeError, r"\(6, 6\)"),
        ({"seq": "a"}, PromptError, "2…15 tokens"),
        ({"seq": "a" * 16}, PromptError, "2…15 tokens"),
        ({"seq": []}, PromptError, "at least one"),
        ({"seq": [TEXT], "cache": {}}, OptionError, "left out for several"),
        ({"heads": [(2, 0)]}, OptionError, "2 layers"),
        ({"cache": {("pattern", 0): torch.zeros(1, 4, 6, 6)}}, ShapeError, "one row's"),
    ],
)
def test_wrong_calls_are_refused(changes: dict[str, Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        wrong(**changes)


def test_attention_must_be_square() -> None:
    with pytest.raises(ShapeError, match="square"):
        head_detector.compute_head_attention_similarity_score(
            torch.ones(2, 2)[:1].expand(1, 2),
            torch.ones(1, 2),
            exclude_bos=False,
            exclude_current_token=False,
            error_measure="mul",
        )
