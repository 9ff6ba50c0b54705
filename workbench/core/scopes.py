"""Scopes to write down: `positions=wb.scopes.after("Answer:")`; all are data and can be saved.

Notable: names, indices and slices do for the simplest ("prompt", -1, slice(2, 8)); these are the
others. Positions are absolute content positions, whatever a run does to get there.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from workbench.core.errors import EmptySelectionError
from workbench.core.matching import AfterMatch, Matching
from workbench.core.options import count, index, indices, iterated, text
from workbench.core.phrases import After, AfterText, Between, OfTokens
from workbench.core.place import Everywhere, Generated, Where, scope
from workbench.core.spans import Combined, Every, First, Intervals, Last, Steps
from workbench.core.standing import Scope


@runtime_checkable
class Spoken(Protocol):
    """What one speaker said: the tokens from `start` to `stop`, as a tokenizer's `chat` gives."""

    @property
    def role(self) -> str:
        """Who spoke."""
        ...

    @property
    def start(self) -> int:
        """The first token."""
        ...

    @property
    def stop(self) -> int:
        """The token after the last."""
        ...


def first(n: int) -> Scope:
    """The first `n` tokens of the prompt."""
    return First(count("first", n))


def last(n: int) -> Scope:
    """The last `n` tokens of the prompt."""
    return Last(count("last", n))


def steps(start: int = 0, stop: int | None = None) -> Scope:
    """Decode steps start <= t < stop: what is generated, counted from 0."""
    return Steps(index("start", start), None if stop is None else index("stop", stop))


def every(n: int, *, offset: int = 0, from_start: bool = False) -> Scope:
    """Every `n`-th position, counted from the end of the prompt unless `from_start`."""
    return Every(count("every", n), index("offset", offset), from_start)


def tokens(ids: int | Iterable[int]) -> Scope:
    """Every position that holds one of these tokens."""
    return OfTokens(indices("ids", ids))


def after(phrase: str | int | Iterable[int]) -> Scope:
    """Everything after the first occurrence of a text, or of tokens, in prompt or generation."""
    return AfterText(phrase) if isinstance(phrase, str) else After(indices("after", phrase))


def until(phrase: str | int | Iterable[int]) -> Scope:
    """Everything up to the first occurrence of a text or of tokens, its last token included."""
    return Combined((Everywhere(),), (after(phrase),))


def matching(pattern: str) -> Scope:
    r"""Every token that is part of a match of a regular expression, as far as the text has come.

    Decided by the text up to and including the token: of "12" only what already stands there is
    seen, and of a word the token that completes it is the one selected. A token has to have a
    character in the match. Flags stand in the pattern ("(?i)yes"), which is that of the `regex`
    package, as `re` has it and more; one that takes more than seconds is refused as it runs.

    >>> matching(r"[0-9]+").to_json()
    {'kind': 'matching', 'pattern': '[0-9]+'}
    """
    return Matching(pattern)


def after_match(pattern: str) -> Scope:
    """Everything after the first token up to which the text contains a match of a pattern."""
    return AfterMatch(pattern)


def between(opening: int | Iterable[int], closing: int | Iterable[int]) -> Scope:
    """What stands between two marks, say those of thinking; open until it is closed."""
    return Between(indices("opening", opening), indices("closing", closing))


def spoken(spans: Sequence[Spoken], role: str) -> Scope:
    """What a role said in a conversation, from `model.tokenizer.chat(messages).spans`.

    What is generated belongs to "assistant".

    Raises:
        EmptySelectionError: If nobody of that role said anything.
    """
    said = tuple((one.start, one.stop) for one in spans if one.role == text("role", role))
    answer = (Generated(),) if role == "assistant" else ()
    if not said and not answer:
        known = ", ".join(sorted({one.role for one in spans})) or "nobody"
        raise EmptySelectionError(f"No {role!r} says anything here; {known} does.")
    parts = (Intervals(said, role), *answer) if said else answer
    return parts[0] if len(parts) == 1 else Combined(parts)


def union(*parts: Where) -> Scope:
    """What any of several scopes selects."""
    return Combined(tuple(map(scope, parts)))


def without(part: Where, *excluded: Where) -> Scope:
    """What one scope selects and none of the others."""
    return Combined((scope(part),), tuple(map(scope, iterated("excluded", excluded))))


def overlap(one: Where, other: Where) -> Scope:
    """What two scopes both select."""
    return Combined((scope(one),), (Combined((Everywhere(),), (scope(other),)),))
