"""Scopes by position: everywhere, the prompt, what is generated, indices and windows.

Where tokens stand is `workbench.core.standing`; other scopes are made by `workbench.core.scopes`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, cast, final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import EmptySelectionError, FormatError, OptionError, WorkbenchError
from workbench.core.options import index, indices
from workbench.core.phrases import PHRASES
from workbench.core.spans import SPANS, Combined
from workbench.core.standing import Mask, Place, Scope, Selection

__all__ = ["Mask", "Place", "Scope", "Selection"]  # which stood here before
_FAR = 2**31  # beyond any context, and well within what a tensor of positions holds


@final
@dataclass(frozen=True)
class Everywhere(Scope):
    """Every position."""

    kind: ClassVar[str] = "all"

    @override
    def select(self, place: Place) -> bool | Mask:
        return True

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()


@final
@dataclass(frozen=True)
class Prompt(Scope):
    """The positions of the prompt: pos < P."""

    kind: ClassVar[str] = "prompt"

    @override
    def select(self, place: Place) -> bool | Mask:
        if place.high < place.prompt_low:
            return True
        return place.low < place.prompt_high and place.positions < place.prompt[:, None]

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()


@final
@dataclass(frozen=True)
class Generated(Scope):
    """What was generated: pos >= P, or pos >= P - 1 with `predicting`.

    The token *at* P - 1 predicts the first generated one, so only `predicting` steers that choice.
    """

    kind: ClassVar[str] = "generated"
    predicting: bool = False

    @override
    def select(self, place: Place) -> bool | Mask:
        early = int(self.predicting)
        if place.low >= place.prompt_high - early:
            return True
        if place.high < place.prompt_low - early:
            return False
        return place.positions >= place.prompt[:, None] - early

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": "predicting" if self.predicting else self.kind}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()


@final
@dataclass(frozen=True)
class At(Scope):
    """Exactly these positions; a negative one counts from the end of the prompt."""

    indices: tuple[int, ...]
    kind: ClassVar[str] = "positions"

    def __post_init__(self) -> None:
        """Refuses an empty list.

        Raises:
            EmptySelectionError: If there are no indices.
        """
        if not self.indices:
            raise EmptySelectionError("positions is empty; leave it out to act everywhere.")
        _check_bounds(self.indices)

    @override
    def select(self, place: Place) -> bool | Mask:
        ahead = [index for index in self.indices if index >= 0]
        behind = [index for index in self.indices if index < 0]
        if not behind and (max(ahead) < place.low or min(ahead) > place.high):
            return False
        mask = torch.isin(place.positions, place.positions.new_tensor(ahead))
        for back in behind:
            mask = mask | (place.positions == place.prompt[:, None] + back)
        return mask

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "indices": list(self.indices)}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i in self.indices if i >= max(lengths) or i < -max(prompts))


@final
@dataclass(frozen=True)
class Window(Scope):
    """Positions start <= pos < stop; negative bounds count from the end of the prompt."""

    start: int | None
    stop: int | None
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        """Refuses what is no position anywhere.

        Raises:
            OptionError: If a bound is far beyond any context.
        """
        _check_bounds([bound for bound in (self.start, self.stop) if bound is not None])

    @override
    def select(self, place: Place) -> bool | Mask:
        start, stop = self._bounds(place)
        mask = torch.ones_like(place.positions, dtype=torch.bool)
        if start is not None:
            mask = mask & (place.positions >= start)
        return mask if stop is None else mask & (place.positions < stop)

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "start": self.start, "stop": self.stop}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()

    def _bounds(self, place: Place) -> tuple[Tensor | None, Tensor | None]:
        ends = place.prompt[:, None]
        start = None if self.start is None else ends * (self.start < 0) + self.start
        stop = None if self.stop is None else ends * (self.stop < 0) + self.stop
        return start, stop


def _check_bounds(indices: Sequence[int]) -> None:
    if any(abs(index) >= _FAR for index in indices):
        raise OptionError("positions", f"indices between {-_FAR} and {_FAR}", list(indices))


Where = None | int | str | slice | Sequence[int] | Scope
_NAMED: Mapping[str, Scope] = {
    "all": Everywhere(),
    "prompt": Prompt(),
    "generated": Generated(),
    "predicting": Generated(predicting=True),
}


def _bound(value: object) -> int | None:
    return None if value is None else index("positions", value)


def scope(where: Where) -> Scope:
    """Positions as a user writes them: None, an index, indices, a slice, a name, or a scope.

    Raises:
        OptionError: If it is none of these.
        EmptySelectionError: If a list is empty.
    """
    match where:
        case None:
            return Everywhere()
        case Scope():
            return where
        case str():
            if where not in _NAMED:
                raise OptionError("positions", f"one of {', '.join(_NAMED)}", where)
            return _NAMED[where]
        case slice():
            if where.step not in (None, 1):
                raise OptionError("positions", "a slice without a step", where)
            return Window(_bound(where.start), _bound(where.stop))
        case _:
            return At(indices("positions", where))


def scope_from_json(data: object) -> Scope:
    """Reads what `Scope.to_json` wrote.

    Raises:
        FormatError: If it is not a scope.
    """
    match data:
        case {"kind": "positions", "indices": [*indices]} if all(type(i) is int for i in indices):
            return At(tuple(indices))
        case {"kind": "window", "start": start, "stop": stop} if _bounds(start, stop):
            return Window(start, stop)
        case {"kind": str() as kind} if kind in _NAMED:
            return _NAMED[kind]
        case {"kind": "combination", "include": [*include], "exclude": [*exclude]}:
            return Combined(
                tuple(map(scope_from_json, include)), tuple(map(scope_from_json, exclude))
            )
        case {"kind": str() as kind} if kind in _READ and isinstance(data, dict):
            return _read(kind, cast("dict[str, object]", data))
        case _:
            known = ", ".join([*_NAMED, "positions", "window", *_READ])
            raise FormatError(f"No scope is written as {data!r:.80}; one of {known}.")


_READ: Mapping[str, Callable[[Mapping[str, object]], Scope]] = MappingProxyType(
    {**SPANS, **PHRASES}
)


def _read(kind: str, data: dict[str, object]) -> Scope:
    try:
        made = _READ[kind](data)
    except (WorkbenchError, LookupError, TypeError) as error:
        raise FormatError(f"The scope {data!r:.80} cannot be read: {error}") from None
    if made.to_json() != data:
        raise FormatError(f"The scope {data!r:.80} has other entries than {made.to_json()!r:.80}.")
    return made


def _bounds(*values: object) -> bool:
    return all(value is None or type(value) is int for value in values)
