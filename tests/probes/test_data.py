"""Labelled texts: what subsets and samples keep, and how they are drawn."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.data import TextData, even_shares, group_numbers
from workbench.core.errors import EmptySelectionError, OptionError, ShapeError

DATA = TextData(
    name="tiny",
    texts=tuple("abcdefgh"),
    labels=(0, 1, 0, 1, 0, 0, 0, 1),
    label_names=("no", "yes"),
    groups=(0, 0, 1, 1, 2, 2, 3, 3),
    ratings=tuple(map(float, range(8))),
)


def test_a_subset_keeps_every_column_in_order() -> None:
    part = DATA.subset([5, 1])
    assert part.texts == ("f", "b")
    assert part.labels == (0, 1)
    assert part.groups == (2, 0)
    assert part.ratings == (5, 1)
    assert (part.name, part.label_names) == (DATA.name, DATA.label_names)


def test_equal_data_have_equal_digests_and_other_data_others() -> None:
    assert DATA.subset(range(8)).digest == DATA.digest
    assert DATA.subset([0, 1]).digest != DATA.subset([1, 0]).digest


@pytest.mark.parametrize("indices", [[8], [-1], [0, 99]])
def test_a_row_that_is_not_there_is_an_option_error(indices: list[int]) -> None:
    with pytest.raises(OptionError, match="rows from 0 to 7"):
        DATA.subset(indices)


def test_no_rows_are_an_empty_selection() -> None:
    with pytest.raises(EmptySelectionError, match="tiny: a subset of no rows"):
        DATA.subset([])


@given(n=st.integers(1, 8), seed=st.integers(0, 20))
def test_a_sample_is_balanced_repeatable_and_in_order(n: int, seed: int) -> None:
    sample = DATA.sample(n, seed)
    assert sample == DATA.sample(n, seed)
    assert len(sample) == n
    assert list(sample.texts) == sorted(sample.texts)
    no, yes = sample.counts().values()
    assert abs(no - yes) <= 1 or yes == 3  # all there are
    for text, label, group in zip(sample.texts, sample.labels, sample.groups, strict=True):
        row = DATA.texts.index(text)
        assert (label, group) == (DATA.labels[row], DATA.groups[row])


@given(n=st.integers(1, 7), seed=st.integers(0, 20))
def test_a_smaller_sample_is_part_of_a_larger_one(n: int, seed: int) -> None:
    assert set(DATA.sample(n, seed).texts) < set(DATA.sample(n + 1, seed).texts)


def test_seeds_differ() -> None:
    assert len({DATA.sample(4, seed).texts for seed in range(20)}) > 1


@pytest.mark.parametrize("n", [0, -1, 9])
def test_a_sample_of_an_impossible_size_is_an_option_error(n: int) -> None:
    with pytest.raises(OptionError, match="n must be from 1 to 8"):
        DATA.sample(n)


@given(available=st.lists(st.integers(0, 20), min_size=1, max_size=5), n=st.integers(0, 120))
def test_shares_are_even_as_far_as_there_are_enough(available: list[int], n: int) -> None:
    shares = even_shares(available, n)
    assert sum(shares) == min(n, sum(available))
    open_shares = [s for s, most in zip(shares, available, strict=True) if s < most]
    assert all(s <= most for s, most in zip(shares, available, strict=True))
    if open_shares:
        assert max(shares) - min(open_shares) <= 1


@pytest.mark.parametrize(
    ("column", "value"), [("labels", (0,)), ("groups", ()), ("ratings", (1.0, 2.0))]
)
def test_columns_of_another_length_are_refused(column: str, value: Any) -> None:
    columns: dict[str, Any] = {
        "labels": DATA.labels,
        "groups": DATA.groups,
        "ratings": DATA.ratings,
    }
    with pytest.raises(ShapeError, match=f"x: {column}: expected 8 values"):
        TextData("x", DATA.texts, label_names=("a", "b"), **(columns | {column: value}))


def test_a_label_without_a_name_is_refused() -> None:
    with pytest.raises(OptionError, match="labels must be 0 to 0, got 1"):
        TextData(name="x", texts=("a",), labels=(1,), label_names=("one",), groups=(0,))


def test_duplicate_texts_share_a_group() -> None:
    assert group_numbers(["a", "b", "a", "c"]) == (0, 1, 0, 2)


def test_keys_are_groups_and_duplicates_join_them() -> None:
    assert group_numbers(["a", "b", "c", "d"], ["x", "x", "y", "z"]) == (0, 0, 1, 2)
    assert group_numbers(["a", "b", "c", "a"], ["x", "x", "y", "y"]) == (0, 0, 0, 0)


@given(rows=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=12))
def test_no_key_and_no_text_is_in_two_groups(rows: list[tuple[str, str]]) -> None:
    texts, keys = [text for text, _ in rows], [key for _, key in rows]
    groups = group_numbers(texts, keys)
    for column in (texts, keys):
        assert len(set(zip(column, groups, strict=True))) == len(set(column))


def test_data_show_themselves_in_a_line() -> None:
    data = TextData("letters", ("a", "b", "c"), (0, 1, 1), ("no", "yes"), (0, 1, 2))
    assert repr(data) == "TextData('letters', 3 texts: 1 no, 2 yes)"
