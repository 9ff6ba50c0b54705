"""Scopes by count: the first and last of a prompt, decode steps, every n-th, spans, and sets.

Notable: decode step t is position P + t of a row whose prompt has P tokens, whoever runs it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import EmptySelectionError, OptionError
from workbench.core.options import count, index, iterated, text
from workbench.core.standing import Mask, Place, Scope


@final
@dataclass(frozen=True)
class First(Scope):
    """The first `n` tokens of the prompt."""

    n: int
    kind: ClassVar[str] = "first"

    def __post_init__(self) -> None:
        """Refuses none.

        Raises:
            OptionError: If `n` is below 1.
        """
        count("first", self.n)

    @override
    def select(self, place: Place) -> bool | Mask:
        return place.low < self.n and place.positions < place.prompt.clamp(max=self.n)[:, None]

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "n": self.n}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return (self.n - 1,) if self.n > max(prompts) else ()


@final
@dataclass(frozen=True)
class Last(Scope):
    """The last `n` tokens of the prompt; never of a chunk."""

    n: int
    kind: ClassVar[str] = "last"

    def __post_init__(self) -> None:
        """Refuses none.

        Raises:
            OptionError: If `n` is below 1.
        """
        count("last", self.n)

    @override
    def select(self, place: Place) -> bool | Mask:
        if place.low >= place.prompt_high:
            return False
        ends = place.prompt[:, None]
        return (place.positions < ends) & (place.positions >= ends - self.n)

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "n": self.n}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return (-self.n,) if self.n > max(prompts) else ()


@final
@dataclass(frozen=True)
class Steps(Scope):
    """Decode steps start <= t < stop, where t = pos - P; the prompt's end is before step 0."""

    start: int
    stop: int | None
    kind: ClassVar[str] = "steps"

    def __post_init__(self) -> None:
        """Refuses an empty window.

        Raises:
            OptionError: If `start` is negative, or `stop` not above it.
        """
        count("start", self.start, least=0)
        if self.stop is not None:
            count("stop", self.stop, least=self.start + 1)

    @override
    def select(self, place: Place) -> bool | Mask:
        if place.high < place.prompt_low + self.start:
            return False
        if self.stop is None and place.low >= place.prompt_high + self.start:
            return True
        steps = place.positions - place.prompt[:, None]
        begun = steps >= self.start
        return begun if self.stop is None else begun & (steps < self.stop)

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "start": self.start, "stop": self.stop}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()


@final
@dataclass(frozen=True)
class Every(Scope):
    """Every `n`-th position, counted from the end of the prompt (or from 0) and `offset`."""

    n: int
    offset: int
    from_start: bool
    kind: ClassVar[str] = "every"

    def __post_init__(self) -> None:
        """Refuses no step.

        Raises:
            OptionError: If `n` is below 1.
        """
        count("every", self.n)
        index("offset", self.offset)

    @override
    def select(self, place: Place) -> bool | Mask:
        origin = 0 if self.from_start else place.prompt[:, None]
        return (place.positions - origin - self.offset).remainder(self.n) == 0

    @override
    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "n": self.n,
            "offset": self.offset,
            "from_start": self.from_start,
        }

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return ()


@final
@dataclass(frozen=True)
class Intervals(Scope):
    """Stretches of positions, start <= pos < stop: what one speaker of a conversation said."""

    intervals: tuple[tuple[int, int], ...]
    role: str = ""
    kind: ClassVar[str] = "span"

    def __post_init__(self) -> None:
        """Refuses stretches without a position.

        Raises:
            EmptySelectionError: If there are none, or one is empty.
            OptionError: If one begins before 0.
        """
        if not self.intervals or any(start >= stop for start, stop in self.intervals):
            raise EmptySelectionError(f"A span must hold a position: {list(self.intervals)}.")
        for start, _ in self.intervals:
            count("span", start, least=0)

    @override
    def select(self, place: Place) -> bool | Mask:
        if place.low >= max(stop for _, stop in self.intervals):
            return False
        mask = torch.zeros_like(place.positions, dtype=torch.bool)
        for start, stop in self.intervals:
            mask = mask | ((place.positions >= start) & (place.positions < stop))
        return mask

    @override
    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "intervals": list(map(list, self.intervals)), "role": self.role}

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(start for start, _ in self.intervals if start >= max(lengths))


@final
@dataclass(frozen=True)
class Combined(Scope):
    """What any of `include` selects and none of `exclude`: an exclusion always wins."""

    include: tuple[Scope, ...]
    exclude: tuple[Scope, ...] = ()
    kind: ClassVar[str] = "combination"

    def __post_init__(self) -> None:
        """Refuses what selects nothing whatever is run.

        Raises:
            EmptySelectionError: If nothing is included.
        """
        if not self.include:
            raise EmptySelectionError("A combination of scopes needs at least one to include.")

    @override
    def select(self, place: Place) -> bool | Mask:
        kept, dropped = _any(self.include, place), _any(self.exclude, place)
        if kept is False or dropped is True:
            return False
        if dropped is False:
            return kept
        return ~dropped if kept is True else kept & ~dropped

    @override
    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "include": [one.to_json() for one in self.include],
            "exclude": [one.to_json() for one in self.exclude],
        }

    @override
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(pos for one in self.include for pos in one.missed(prompts, lengths))


def _any(scopes: Sequence[Scope], place: Place) -> bool | Mask:
    found: Tensor | None = None
    for one in scopes:
        chosen = one.select(place)
        if chosen is True:
            return True
        if isinstance(chosen, Tensor):
            found = chosen if found is None else found | chosen
    return False if found is None else found


def _optional_index(name: str, value: object) -> int | None:
    return None if value is None else index(name, value)


def _pairs(values: object) -> tuple[tuple[int, int], ...]:
    pairs = [tuple(iterated("intervals", pair)) for pair in iterated("intervals", values)]
    if any(len(pair) != 2 for pair in pairs):
        raise OptionError("intervals", "pairs (start, stop)", values)
    return tuple((index("intervals", start), index("intervals", stop)) for start, stop in pairs)


SPANS: Mapping[str, Callable[[Mapping[str, object]], Scope]] = MappingProxyType(
    {
        "first": lambda data: First(index("n", data["n"])),
        "last": lambda data: Last(index("n", data["n"])),
        "steps": lambda data: Steps(
            index("start", data["start"]), _optional_index("stop", data["stop"])
        ),
        "every": lambda data: Every(
            index("n", data["n"]), index("offset", data["offset"]), data["from_start"] is True
        ),
        "span": lambda data: Intervals(_pairs(data["intervals"]), text("role", data["role"])),
    }
)
