"""Prompts become batches, contrasts are aligned, and what cannot be run is refused by name."""

from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.data import batch_of
from workbench.core.errors import AlignmentError, OptionError, PromptError, TokenError

MODEL = tiny.model("llama")


def test_a_text_ids_and_a_tensor_are_the_same_prompt() -> None:
    ids = list(b"abc")
    for prompt in (
        "abc",
        ids,
        [ids],
        torch.tensor(ids),
        torch.tensor([ids]),
        ["abc"],
        [tuple(ids)],
    ):
        assert batch_of(MODEL, prompt).tokens.tolist() == [ids]


@pytest.mark.parametrize(
    ("side", "real", "positions", "last"),
    [
        ("right", [[1, 1, 1, 1], [1, 1, 0, 0]], [[0, 1, 2, 3], [0, 1, 1, 1]], [3, 1]),
        ("left", [[1, 1, 1, 1], [0, 0, 1, 1]], [[0, 1, 2, 3], [0, 0, 0, 1]], [3, 3]),
    ],
)
def test_positions_count_content_only(side, real, positions, last) -> None:
    batch = batch_of(MODEL, ["abcd", "xy"], padding_side=side)
    assert batch.real is not None
    assert batch.real.int().tolist() == real
    assert batch.positions.tolist() == positions
    assert batch.last.tolist() == last
    assert batch.lengths.tolist() == batch.prompt.tolist() == [4, 2]


def test_equal_lengths_need_no_mask() -> None:
    batch = batch_of(MODEL, ["abcd", "wxyz"])
    assert batch.real is None
    assert batch.uniform
    assert batch.place.from_start


def test_a_batch_repeats_whole() -> None:
    twice = batch_of(MODEL, ["abcd", "xy"]).repeat(2)
    assert twice.tokens.shape == (4, 4)
    assert twice.prompt.tolist() == [4, 2, 4, 2]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "Prompt 0 is empty"),
        (["abc", ""], "Prompt 1 is empty"),
        ([], "no prompt"),
        ("x" * 33, r"has 33 tokens; .* reads at most 32. Shorten it by 1"),
        ([300], r"ids outside 0…257: \[300\]"),
        ([-1], "ids outside"),
        (torch.zeros(1, 1, 3, dtype=torch.long), "must be integers"),
    ],
)
def test_what_cannot_be_run_is_refused(prompt, said: str) -> None:
    with tiny.unchecked(), pytest.raises(PromptError, match=said):
        batch_of(MODEL, prompt)


def test_what_is_no_prompt_at_all_is_refused() -> None:
    strange: Any
    for strange, said in (
        (torch.zeros(1, 3), "must be integers"),
        ([1.5, 2], "a text or token ids, got float"),
        ([[1.5]], "a token id must be a whole number, got 1.5"),
        ([None], "got NoneType"),
        (7, "got int"),
    ):
        with tiny.unchecked(), pytest.raises(PromptError, match=said):
            batch_of(MODEL, strange)


def test_an_unknown_padding_side_is_refused() -> None:
    middle: Any = "middle"
    with tiny.unchecked(), pytest.raises(OptionError, match="must be 'left' or 'right'"):
        batch_of(MODEL, "abc", padding_side=middle)


def test_prompts_that_part_are_refused_where_they_part() -> None:
    contrast = wb.Contrast(clean="abcd", corrupt="abx", target="e", foil="f")
    with pytest.raises(
        AlignmentError, match=r"example 0: clean has 4 tokens, corrupt 3; they part at position 2"
    ):
        contrast.on(MODEL)


def test_answers_are_single_tokens_and_differ() -> None:
    with pytest.raises(TokenError, match="'ef' must be one token and is 2"):
        wb.Contrast(clean="ab", corrupt="xb", target="ef", foil="f").on(MODEL)
    with pytest.raises(AlignmentError, match="same token"):
        wb.Contrast(clean="ab", corrupt="xb", target="e", foil="e").on(MODEL)
    with pytest.raises(PromptError, match="outside"):
        wb.Contrast(clean="ab", corrupt="xb", target=999, foil=1).on(MODEL)


def test_counts_must_match() -> None:
    with pytest.raises(AlignmentError, match="2 clean prompts and 1 corrupt"):
        wb.Contrast(clean=["ab", "cd"], corrupt=["xb"], target="e", foil="f").on(MODEL)
    with pytest.raises(AlignmentError, match="2 examples need 1 or 2 answers, got 3"):
        wb.Contrast(clean=["ab", "cd"], corrupt=["xb", "xd"], target=["a", "b", "c"], foil="f").on(
            MODEL
        )


def test_one_answer_serves_every_example() -> None:
    words = wb.Contrast(clean=["ab", "cd"], corrupt=["xb", "xd"], target="e", foil=102).on(MODEL)
    assert words.target == (101, 101)
    assert words.foil == (102, 102)
