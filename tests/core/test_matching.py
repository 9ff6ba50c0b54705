"""Regular expressions over what was said: what they see, and what they are refused for."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests import tiny
from workbench.core import matching
from workbench.core.errors import OptionError
from workbench.core.matching import first_with, lasting, said
from workbench.core.phrases import bound
from workbench.core.standing import Scope

WORDS = tiny.Bytes()


def chosen(scope: Scope, ids: Sequence[int]) -> list[int]:
    place = tiny.batch([list(ids)], [1]).place
    selected = bound(scope, WORDS).select(place)
    assert isinstance(selected, torch.Tensor)
    return selected[0].nonzero()[:, 0].tolist()


@given(
    pattern=st.sampled_from(["ab", "a+b?", "(?=b)b", "b$", "^a", "a(?!b)", "(ab|ba)+", "[^a]b"]),
    text=st.text("ab", min_size=1, max_size=9),
    more=st.text("ab", max_size=4),
)
def test_what_comes_later_changes_nothing(pattern: str, text: str, more: str) -> None:
    for scope in (wb.scopes.matching(pattern), wb.scopes.after_match(pattern)):
        before = chosen(scope, text.encode())
        assert before == [pos for pos in chosen(scope, (text + more).encode()) if pos < len(text)]


def test_a_token_of_an_unfinished_character_has_no_text() -> None:
    ids = [*"añ".encode(), 0xE6, ord("b"), *"東".encode()]  # a, 2 bytes, a stray one, b, 3 bytes
    assert chosen(wb.scopes.matching("ñ"), ids) == [2]
    assert chosen(wb.scopes.matching("."), ids) == [0, 2, 4, 7]
    assert chosen(wb.scopes.matching("\ufffd"), ids) == [4]  # the one that shows it was no text
    assert chosen(wb.scopes.after_match("[^a]"), ids) == [3, 4, 5, 6, 7]


def test_special_tokens_are_read_as_they_are_written() -> None:
    assert chosen(wb.scopes.matching("<256>"), [97, 256, 97]) == [1]
    assert chosen(wb.scopes.after_match("<2.6>"), [97, 256, 97]) == [2]


def test_an_empty_match_holds_no_token() -> None:
    assert chosen(wb.scopes.matching("a*"), b"bab") == [1]
    assert chosen(wb.scopes.matching("(?=b)"), b"bab") == []
    with pytest.raises(OptionError, match=r"a pattern that an empty text lacks, got 'a\*'"):
        wb.scopes.after_match("a*")


@pytest.mark.parametrize("pattern", ["(", "[a", "a{2,1}", "(?P<", "*"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    for make in (wb.scopes.matching, wb.scopes.after_match):
        with pytest.raises(OptionError, match="must be a regular expression"):
            make(pattern)


def test_a_pattern_that_finds_no_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "PATIENCE", 0.05)
    slow = "(?:a|aa)+c"
    text = [*(b"a" * 40), *b"ba"]
    for scope in (wb.scopes.matching(slow), wb.scopes.after_match(slow)):
        with pytest.raises(
            OptionError, match=r"found within 0\.05 s; have no repeat within a repeat"
        ):
            chosen(scope, text)


@pytest.mark.parametrize(
    ("pattern", "stays"),
    [
        ("abc", True),
        ("a+?(?:b|c)*[de]{2,3}.", True),
        (r"\d+\.\s(x)", True),
        ("a$", False),
        (r"a\b", False),
        (r"a\Z", False),
        ("a(?!b)", False),
        ("a(?=b)", False),
        ("(?>a+)b", False),
        ("a++b", False),
        ("a{2}+b", False),
        (r"\X", False),
        ("(*PRUNE)a", False),
        ("(?r)a", False),
    ],
)
def test_which_matches_stay_is_told_with_care(pattern: str, stays: bool) -> None:
    assert lasting(pattern) == stays


@given(
    pattern=st.sampled_from(["ab", "a+?b", "(?:ab|b)+a", "[ab]b.", "(a)(b)", "b*a"]),
    text=st.text("abc", max_size=12),
)
def test_halving_finds_the_first_token(pattern: str, text: str) -> None:
    """Against looking at every beginning."""
    assert lasting(pattern)
    compiled = matching.compiled("after_match", pattern)
    ids = list(text.encode())
    ends = [i for i in range(len(ids)) if compiled.search(said(WORDS, ids[: i + 1]))]

    def found(some: list[int]) -> bool:
        return bool(compiled.search(said(WORDS, some)))

    assert first_with(ids, found) == (ends[0] if ends else len(ids))
