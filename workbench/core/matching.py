"""Scopes by regular expression, decided token by token by the text up to and including each.

Notable: the text up to a token is what the vocabulary reads in the row so far, without the bytes
of an unfinished character. A pattern never sees further, so a token that only a later one makes
part of a match is not selected; and however a text is run, the answer is the same. The `regex`
package does the matching, as it can be told to give up: Python's own `re` may take for ever.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.options import text
from workbench.core.standing import Mask, Place, Scope

if TYPE_CHECKING:
    from workbench.core.protocols import Vocabulary

PATIENCE = 2.0  # seconds for one search: a thousand times what a sane pattern takes on a long text
UNFINISHED = "\ufffd"
# Without lookaround, anchors, possessive or atomic parts a match stays one when text is added.
_LASTING = r"(?:[^\\$(^]|\((?![?*])|\(\?:|\\[dDwWsSnrt.\\|()\[\]{}*+?^$/-])*+"
_POSSESSIVE = r"[*+?}]\+"


@final
@dataclass(frozen=True)
class Matching(Scope):
    """Every token whose own text is part of a match, in the text up to and including it.

    Costs one decoding and one search of the row's text so far for each token of a pass.
    """

    pattern: str
    vocabulary: "Vocabulary | None" = field(
        default=None, compare=False
    )  # the model's: a plan gets it when it is compiled
    kind: ClassVar[str] = "matching"

    def __post_init__(self) -> None:
        """Refuses what is no pattern, and one that only fits nothing.

        Raises:
            OptionError: If it cannot be compiled.
        """
        _ = self._compiled

    @override
    def select(self, place: Place) -> bool | Mask:
        chosen = [
            [pos in found for pos in at]
            for at, found in zip(place.positions.tolist(), self._rows(place), strict=True)
        ]
        return torch.tensor(chosen, device=place.positions.device)

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "pattern": self.pattern}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()

    @cached_property
    def _compiled(self) -> Any:
        return compiled("matching", self.pattern)

    def _rows(self, place: Place) -> Iterator[set[int]]:
        """The chosen positions of each row, of those in this pass."""
        rows, words = place.content.tolist(), known(self.vocabulary, "matching", self.pattern)
        for row, (ids, at) in enumerate(zip(rows, place.positions.tolist(), strict=True)):
            real = None if place.real is None else place.real[row].tolist()
            here = {pos for i, pos in enumerate(at) if real is None or real[i]}
            found: set[int] = set()
            last, before = -1, ""
            for pos in sorted(here):
                before = before if pos == last + 1 else said(words, ids[:pos])
                now = said(words, ids[: pos + 1])
                if self._chosen(before, now):
                    found.add(pos)
                last, before = pos, now
            yield found

    def _chosen(self, before: str, now: str) -> bool:
        """Whether a text's new end has a character in a match."""
        start = len(before) if now.startswith(before) else _common(before, now)
        if start == len(now):
            return False
        matches = patient(
            "matching", self.pattern, lambda: self._compiled.finditer(now, timeout=PATIENCE)
        )
        return any(one.end() > max(start, one.start()) for one in matches)


@final
@dataclass(frozen=True)
class AfterMatch(Scope):
    """Every position after the first token up to which the row's text contains a match.

    Costs a few decodings and searches of each row per pass; as many as the row has tokens where
    the pattern has lookaround, anchors, or possessive or atomic parts, whose matches may pass.
    """

    pattern: str
    vocabulary: "Vocabulary | None" = field(default=None, compare=False)
    kind: ClassVar[str] = "after_match"

    def __post_init__(self) -> None:
        """Refuses what is no pattern, and one that is found in nothing at all.

        Raises:
            OptionError: If it cannot be compiled, or matches an empty text.
        """
        if self._compiled.search(""):
            raise OptionError("after_match", "a pattern that an empty text lacks", self.pattern)

    @override
    def select(self, place: Place) -> bool | Mask:
        words = known(self.vocabulary, "after_match", self.pattern)
        highest = place.positions.amax(1).tolist()
        rows = zip(place.content.tolist(), highest, strict=True)
        ends = [self._end(ids[: top + 1], words) for ids, top in rows]
        return place.positions > place.positions.new_tensor(ends)[:, None]

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "pattern": self.pattern}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()

    @cached_property
    def _compiled(self) -> Any:
        return compiled("after_match", self.pattern)

    def _end(self, ids: list[int], words: "Vocabulary") -> int:
        def found(some: list[int]) -> bool:
            now = said(words, some)
            return bool(
                patient(
                    "after_match",
                    self.pattern,
                    lambda: [self._compiled.search(now, timeout=PATIENCE)],
                )[0]
            )

        if lasting(self.pattern):
            return first_with(ids, found)
        return next((i for i in range(len(ids)) if found(ids[: i + 1])), len(ids))


def compiled(option: str, pattern: str) -> Any:
    """A pattern, compiled: the package keeps them, so that this is cheap the second time.

    Raises:
        OptionError: If it is none.
    """
    import regex

    try:
        return regex.compile(text(option, pattern))
    except regex.error as error:
        raise OptionError(option, f"a regular expression ({error})", pattern) from None


def patient(option: str, pattern: str, search: Callable[[], Any]) -> list[Any]:
    """What a search finds, if it comes to an end.

    Raises:
        OptionError: If it takes too long, as nested repeats do on a text that almost fits.
    """
    try:
        return list(search())
    except TimeoutError:
        quick = f"a pattern that is found within {PATIENCE:g} s; have no repeat within a repeat"
        raise OptionError(option, quick, pattern) from None


def lasting(pattern: str) -> bool:
    """Whether a text with a match certainly has one, too, when more is added to its end."""
    import regex

    plain = regex.fullmatch(_LASTING, pattern) is not None
    return plain and regex.search(_POSSESSIVE, pattern) is None


def known(words: "Vocabulary | None", option: str, what: str) -> "Vocabulary":
    """The vocabulary of a model that has one.

    Raises:
        OptionError: If it has none.
    """
    if words is None:
        raise OptionError(option, "left out: this model has no tokenizer", what)
    return words


def said(words: "Vocabulary", ids: Sequence[int]) -> str:
    """The text of ids, as far as its characters are finished."""
    return words.decode(ids).rstrip(UNFINISHED) if ids else ""


def _common(one: str, other: str) -> int:
    """How many first characters of two texts are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def first_with(ids: list[int], found: Callable[[list[int]], bool]) -> int:
    """The first token up to which something is found that stays; the number of ids if never."""
    if not found(ids):
        return len(ids)
    low, high = 0, len(ids)  # it is not in ids[:low], and is in ids[:high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(ids[:middle]) else (middle, high)
    return high - 1
