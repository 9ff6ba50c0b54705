"""Errors are the builtins a caller expects, keep their data, and say where, expected, got, next."""

import pytest

from workbench.core import errors
from workbench.core.errors import (
    NonFiniteError,
    OptionError,
    ShapeError,
    TokenError,
    UnknownConfigKeyError,
    UnknownNameError,
    WorkbenchError,
)

TREE = [
    line.split()
    for line in (errors.__doc__ or "").splitlines()
    if line.lstrip().startswith(("├─", "└─"))
]


@pytest.mark.parametrize(("name", "builtin"), [(row[1], row[2]) for row in TREE])
def test_the_tree_in_the_docstring_is_the_tree(name: str, builtin: str) -> None:
    error = vars(errors)[name]
    assert issubclass(error, WorkbenchError)
    assert issubclass(error, vars(__import__("builtins"))[builtin])


def test_every_error_stands_in_the_tree() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, WorkbenchError)
    }
    assert defined == {"WorkbenchError", *(row[1] for row in TREE)}


def test_an_unknown_name_names_the_nearest_and_reads_as_text() -> None:
    error = UnknownNameError("site", "hok_z", ["hook_z", "hook_q", "ln1"], "Try a glob.")
    assert str(error).startswith("No site named 'hok_z'. Nearest of 3: hook_z, ")
    assert str(error).endswith(". Try a glob.")
    assert (error.kind, error.name, error.known) == ("site", "hok_z", ("hook_z", "hook_q", "ln1"))
    assert str(UnknownNameError("site", "x", [])) == "No site named 'x'. None is known."


def test_messages_say_what_was_expected_and_what_came() -> None:
    assert str(OptionError("top_k", "1 or more", 0)) == "top_k must be 1 or more, got 0."
    assert str(ShapeError("here", "(2)", "(3)")) == "here: expected (2), got (3)."
    assert "4 of 9 values are not finite" in str(NonFiniteError("there", 4, 9))
    assert str(TokenError(" dogs", [" do", "gs"], [" dog"])) == (
        "' dogs' must be one token and is 2: ' do' + 'gs'. Single tokens near it: ' dog'."
    )
    assert str(TokenError("", [])) == "'' must be one token and is 0: nothing. Choose another word."
    assert str(UnknownConfigKeyError("gpt2", "k", 1)) == (
        "gpt2: config key 'k' = 1 is neither handled nor ignored; "
        "see workbench/models/families/gpt2.py."
    )
