"""What a caller passes, read once: indices, counts, numbers and texts; others are refused by name.

Notable: nothing is rounded or guessed. An index is what Python, NumPy and torch take for an
integer, but never a truth value, so that 1.5 is no head and a mask is no list of tokens.
"""

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any, SupportsIndex, TypeVar

import torch
from torch import Tensor

from workbench.core.errors import EmptySelectionError, OptionError

_LARGEST = 2**63 - 1  # what a tensor of indices holds
Kind = TypeVar("Kind")


def index(option: str, value: object) -> int:
    """A whole number.

    Raises:
        OptionError: If it is a truth value, a float, too large, or no number at all.
    """
    single = not isinstance(value, Tensor) or value.ndim == 0
    if single and isinstance(value, SupportsIndex) and not _is_truth(value):
        try:
            number = operator.index(value)
        except TypeError:  # an array or a tensor that is no single integer
            number = None
        if number is not None and abs(number) > _LARGEST:
            raise OptionError(option, f"within {_LARGEST} on either side", value)
        if number is not None:
            return number
    raise OptionError(option, "a whole number", value)


def indices(option: str, values: object) -> tuple[int, ...]:
    """One whole number or several.

    Raises:
        OptionError: If one of them is no whole number.
        EmptySelectionError: If there are none.
    """
    parts = (values,) if _is_single(values) else tuple(iterated(option, values))
    if not parts:
        raise EmptySelectionError(f"{option} is empty; leave it out, or name at least one.")
    return tuple(index(option, part) for part in parts)


def count(option: str, value: object, *, least: int = 1) -> int:
    """A whole number that is large enough.

    Raises:
        OptionError: If it is not.
    """
    number = index(option, value)
    if number < least:
        raise OptionError(option, f"{least} or more", value)
    return number


def number(option: str, value: object) -> float:
    """A finite number.

    Raises:
        OptionError: If it is a truth value, no number, NaN or infinite.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and not _is_truth(value):
        value = value.item()
    read = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's numbers are Real too
        try:
            read = float(value)
        except OverflowError:  # an integer may be longer than any float
            read = math.inf
    if not math.isfinite(read):
        raise OptionError(option, "a finite number", value)
    return read


def texts(option: str, values: object) -> tuple[str, ...]:
    """One text or several.

    Raises:
        OptionError: If something else is among them.
    """
    parts = (values,) if isinstance(values, str) else tuple(iterated(option, values))
    found = tuple(part for part in parts if isinstance(part, str))
    if len(found) < len(parts):
        raise OptionError(option, "a text or texts", values)
    return found


def text(option: str, value: object) -> str:
    """One text.

    Raises:
        OptionError: If it is something else.
    """
    if not isinstance(value, str):
        raise OptionError(option, "a text", value)
    return value


def flag(option: str, value: object) -> bool:
    """True or False.

    Raises:
        OptionError: If it is something else.
    """
    if not isinstance(value, bool):
        raise OptionError(option, "True or False", value)
    return value


def expect(
    option: str, value: object, kind: type[Kind] | tuple[type[Kind], ...], words: str
) -> Kind:
    """The value, if it is of a kind.

    Raises:
        OptionError: If it is not; `words` say what was wanted.
    """
    if not isinstance(value, kind):
        raise OptionError(option, words, type(value).__name__)
    return value


def iterated(option: str, values: object) -> Iterable[Any]:
    """Several of something: a list, a tuple, an array, a generator, but no text and no mapping.

    Raises:
        OptionError: If it is a single thing.
    """
    if isinstance(values, Tensor) and values.ndim:
        return values.unbind()
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Tensor | dict):
        return values
    raise OptionError(option, "one or several, in a list", values)


def _is_single(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0
    return isinstance(value, SupportsIndex) and not isinstance(value, Iterable)


def _is_truth(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)
