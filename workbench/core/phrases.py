"""Scopes by what was said: certain tokens, after a phrase, between two marks.

Notable: each is a function of the tokens up to a position, so that a phrase which is generated,
split over chunks, or cached counts like one in the prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import EmptySelectionError, OptionError
from workbench.core.matching import AfterMatch, Matching, first_with
from workbench.core.options import indices, text
from workbench.core.spans import Combined
from workbench.core.standing import Content, Mask, Place, Scope

if TYPE_CHECKING:
    from workbench.core.protocols import Vocabulary


@final
@dataclass(frozen=True)
class OfTokens(Scope):
    """Every position whose token is one of these."""

    ids: tuple[int, ...]
    kind: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        """Refuses an empty list.

        Raises:
            EmptySelectionError: If there are no ids.
        """
        _check_ids(self.ids)

    @override
    def select(self, place: Place) -> bool | Mask:
        chosen = torch.isin(place.content, place.content.new_tensor(self.ids))
        return chosen.gather(1, place.positions)

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "ids": list(self.ids)}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()


@final
@dataclass(frozen=True)
class After(Scope):
    """Every position after the first occurrence of these tokens, one after another."""

    ids: tuple[int, ...]
    kind: ClassVar[str] = "after"

    def __post_init__(self) -> None:
        """Refuses an empty sequence.

        Raises:
            EmptySelectionError: If there are no ids.
        """
        _check_ids(self.ids)

    @override
    def select(self, place: Place) -> bool | Mask:
        ends = _ends(place.content, self.ids)
        first = torch.where(ends.any(1), ends.int().argmax(1), ends.shape[1])
        return place.positions > first[:, None]

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "ids": list(self.ids)}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()


@final
@dataclass(frozen=True)
class AfterText(Scope):
    """Every position after the token that completes the first occurrence of a text.

    However tokens fall: that token is the first up to which the decoded row contains the text.
    Costs one decoding of each row per pass, and some more once the text is there.
    """

    text: str
    vocabulary: "Vocabulary | None" = field(
        default=None, compare=False
    )  # the model's: a plan gets it when it is compiled
    kind: ClassVar[str] = "after_text"

    def __post_init__(self) -> None:
        """Refuses an empty text, which is everywhere.

        Raises:
            OptionError: If it is empty.
        """
        if not text("after", self.text):
            raise OptionError("after", "a text that is not empty", self.text)

    @override
    def select(self, place: Place) -> bool | Mask:
        highest = place.positions.amax(1).tolist()
        rows = place.content.tolist()
        ends = [
            first_with(row[: top + 1], self._said) for row, top in zip(rows, highest, strict=True)
        ]
        return place.positions > place.positions.new_tensor(ends)[:, None]

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "text": self.text}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()

    def _said(self, ids: list[int]) -> bool:
        if self.vocabulary is None:
            raise OptionError("after", "token ids: this model has no tokenizer", self.text)
        return self.text in self.vocabulary.decode(ids)


@final
@dataclass(frozen=True)
class Between(Scope):
    """Every position after `opening` and before the end of `closing`; open until it is closed.

    The last token of either mark is outside, and each of its occurrences counts.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    kind: ClassVar[str] = "between"

    def __post_init__(self) -> None:
        """Refuses empty marks.

        Raises:
            EmptySelectionError: If there are no ids.
        """
        _check_ids(self.opening)
        _check_ids(self.closing)

    @override
    def select(self, place: Place) -> bool | Mask:
        opened = _latest(_ends(place.content, self.opening)).gather(1, place.positions)
        closed = _latest(_ends(place.content, self.closing)).gather(1, place.positions)
        return (opened > closed) & (opened < place.positions)

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "opening": list(self.opening), "closing": list(self.closing)}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()


def bound(scope: Scope, vocabulary: "Vocabulary | None") -> Scope:
    """The same scope, where it needs one with the model's vocabulary."""
    match scope:
        case AfterText() | Matching() | AfterMatch():
            return replace(scope, vocabulary=vocabulary)
        case Combined():
            include = tuple(bound(one, vocabulary) for one in scope.include)
            return Combined(include, tuple(bound(one, vocabulary) for one in scope.exclude))
        case _:
            return scope


def _check_ids(ids: tuple[int, ...]) -> None:
    if not ids:
        raise EmptySelectionError("No token ids are named; name at least one.")
    if min(ids) < 0:
        raise OptionError("ids", "token ids from 0 up", list(ids))


def _ends(content: Content, ids: Sequence[int]) -> Bool[Tensor, "batch position"]:
    """Where the last token of each occurrence stands."""
    found = torch.zeros_like(content, dtype=torch.bool)
    if len(ids) > content.shape[1]:
        return found
    windows = content.unfold(1, len(ids), 1)  # batch start token
    found[:, len(ids) - 1 :] = (windows == content.new_tensor(ids)).all(2)
    return found


def _latest(marks: Bool[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """At each position, the last marked one up to it; -1 before any."""
    positions = torch.arange(marks.shape[1], device=marks.device)
    return torch.where(marks, positions, -1).cummax(1).values


PHRASES: Mapping[str, Callable[[Mapping[str, object]], Scope]] = MappingProxyType(
    {
        "tokens": lambda data: OfTokens(indices("ids", data["ids"])),
        "after": lambda data: After(indices("ids", data["ids"])),
        "after_text": lambda data: AfterText(text("text", data["text"])),
        "matching": lambda data: Matching(text("pattern", data["pattern"])),
        "after_match": lambda data: AfterMatch(text("pattern", data["pattern"])),
        "between": lambda data: Between(
            indices("opening", data["opening"]), indices("closing", data["closing"])
        ),
    }
)
