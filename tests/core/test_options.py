"""What callers pass is read once: nothing is rounded, and what does not fit is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from workbench.core import options
from workbench.core.errors import EmptySelectionError, OptionError


def kinds(value: Any) -> str:
    """A name that is the same in every process, which an object's address is not."""
    return type(value).__name__


NO_NUMBERS: list[Any] = [None, "1", b"1", object(), {}, True, torch.tensor(True), np.bool_(True)]
NO_INDEX = [*NO_NUMBERS, 1.0, 1.5, float("nan"), torch.tensor(1.0), np.float64(1)]


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_an_index_is_any_integer(value: Any) -> None:
    assert options.index("heads", value) == 3
    assert type(options.index("heads", value)) is int


@pytest.mark.parametrize("value", [*NO_INDEX, [1], torch.tensor([1]), np.array([1])], ids=kinds)
def test_an_index_is_nothing_else(value: Any) -> None:
    with pytest.raises(OptionError, match="heads must be a whole number, got"):
        options.index("heads", value)


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (0, (0,)),
        (torch.tensor(2), (2,)),
        ([1, -2], (1, -2)),
        (range(3), (0, 1, 2)),
        ({4}, (4,)),
        (torch.tensor([1, 2]), (1, 2)),
        (np.array([5, 6]), (5, 6)),
        ((i for i in (7, 8)), (7, 8)),
    ],
)
def test_indices_are_one_or_several(values: Any, read: tuple[int, ...]) -> None:
    assert options.indices("rows", values) == read


@pytest.mark.parametrize("value", NO_INDEX, ids=kinds)
def test_one_wrong_index_refuses_them_all(value: Any) -> None:
    with pytest.raises(OptionError, match="rows must be"):
        options.indices("rows", value)
    with pytest.raises(OptionError, match="rows must be a whole number"):
        options.indices("rows", [0, value])


def test_an_index_fits_into_a_tensor() -> None:
    assert options.index("heads", -(2**63) + 1) == -(2**63) + 1
    with pytest.raises(OptionError, match="heads must be within 9223372036854775807"):
        options.index("heads", 2**63)


def test_a_mask_is_no_list_of_indices() -> None:
    with pytest.raises(OptionError, match="a whole number, got tensor"):
        options.indices("vocabulary", torch.tensor([True, False]))


@pytest.mark.parametrize("values", [[], (), torch.tensor([]), np.array([], dtype=int)])
def test_no_indices_are_an_empty_selection(values: Any) -> None:
    with pytest.raises(EmptySelectionError, match="rows is empty; leave it out, or name"):
        options.indices("rows", values)


def test_a_count_has_a_least_value() -> None:
    assert options.count("top_k", 1) == 1
    assert options.count("seed", 0, least=0) == 0
    with pytest.raises(OptionError, match="top_k must be 1 or more, got 0"):
        options.count("top_k", 0)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)])
def test_a_number_is_any_real_number(value: Any) -> None:
    assert options.number("strength", value) == 2.0
    assert type(options.number("strength", value)) is float


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1j, [1.0], torch.tensor([1.0])], ids=kinds)
def test_a_number_is_nothing_else(value: Any) -> None:
    with pytest.raises(OptionError, match="strength must be a finite number, got"):
        options.number("strength", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_number_is_finite(value: Any) -> None:
    with pytest.raises(OptionError, match="strength must be a finite number"):
        options.number("strength", value)


def test_texts_are_one_or_several() -> None:
    assert options.texts("stop", "a") == ("a",)
    assert options.texts("stop", ["a", "b"]) == ("a", "b")
    assert options.texts("stop", []) == ()


@pytest.mark.parametrize("value", [None, 1, b"a", {"a": 1}, ["a", 1], [None]], ids=kinds)
def test_texts_are_nothing_else(value: Any) -> None:
    with pytest.raises(OptionError, match="stop must be"):
        options.texts("stop", value)


@pytest.mark.parametrize("read", [options.text, options.flag])
@pytest.mark.parametrize("value", [None, 1, 1.5, ["a"]])
def test_a_text_and_a_flag_are_nothing_else(read: Callable[..., Any], value: Any) -> None:
    with pytest.raises(OptionError, match="label must be"):
        read("label", value)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(OptionError) as caught:
        options.index("heads", list(range(10_000)))
    assert len(str(caught.value)) < 300
    assert str(caught.value).endswith("… (list).")
    assert caught.value.got == list(range(10_000))
