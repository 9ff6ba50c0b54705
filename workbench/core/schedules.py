"""Strength over decode steps: `schedule=wb.schedules.linear(1.0, 0.0, steps=20)`; frozen data.

Notable: a step is counted from content positions (t = pos - P), never from calls, so that a
schedule means the same with a cache, without one, and in a full forward over the finished text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, cast, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import EmptySelectionError, FormatError, OptionError, WorkbenchError
from workbench.core.options import count, index, iterated, number
from workbench.core.standing import Place

Shape = Literal["hold", "linear", "cosine", "exponential"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
Point = tuple[int, float]


@final
@dataclass(frozen=True)
class Schedule:
    """What a strength is multiplied with at each decode step.

    `points` are steps and values; between two of them the value is held, or goes over linearly,
    by half a cosine or exponentially; beyond the last it stays. The prompt has `prompt_value`.
    """

    points: tuple[Point, ...]
    shape: Shape = "hold"
    prompt_value: float = 1.0

    def __post_init__(self) -> None:
        """Checks the points.

        Raises:
            EmptySelectionError: If there are none.
            OptionError: If they do not begin at step 0 and go on, or an exponential one is not
                of one sign.
        """
        number("prompt_value", self.prompt_value)
        if self.shape not in SHAPES:
            raise OptionError("shape", f"one of {', '.join(SHAPES)}", self.shape)
        if not self.points:
            raise EmptySelectionError("A schedule needs at least one point (step, value).")
        steps = [count("step", step, least=0) for step, _ in self.points]
        values = [number("schedule", value) for _, value in self.points]
        if steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
            raise OptionError("schedule", "steps that begin at 0 and grow", steps)
        if steps[-1] > _LONGEST:
            raise OptionError("schedule", f"steps of at most {_LONGEST}", steps)
        if self.shape == "exponential" and min(values) * max(values) <= 0:
            raise OptionError("schedule", "values of one sign, none of them 0", values)

    def at(self, place: Place) -> Float[Tensor, "batch pos"]:
        """The factor at each token."""
        table = self.table.to(place.positions.device)
        steps = (place.positions - place.prompt[:, None]).clamp(-1, len(table) - 2)
        return table[steps + 1]

    @cached_property
    def table(self) -> Float[Tensor, " step"]:
        """The factor of the prompt, then of each step up to the last point."""
        last = self.points[-1][0]
        values = [self.prompt_value, *(self._value(step) for step in range(last + 1))]
        return torch.tensor(values, dtype=torch.float64)

    def to_json(self) -> dict[str, object]:
        """The schedule as plain data; `schedule_from_json` reads it."""
        points = [list(point) for point in self.points]
        return {"points": points, "shape": self.shape, "prompt_value": self.prompt_value}

    def _value(self, step: int) -> float:
        before = max(i for i, (at, _) in enumerate(self.points) if at <= step)
        start, low = self.points[before]
        if step == start or self.shape == "hold":
            return low
        stop, high = self.points[before + 1]
        part = (step - start) / (stop - start)
        if self.shape == "exponential":
            return low * (high / low) ** part
        if self.shape == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return low + (high - low) * part


_LONGEST = 2**20  # the table of a schedule has an entry per step
_KEYS: Mapping[str, None] = MappingProxyType(dict.fromkeys(("points", "shape", "prompt_value")))


def linear(start: float, stop: float, *, steps: int, prompt_value: float = 1.0) -> Schedule:
    """From `start` at step 0 to `stop` at step `steps`, in equal parts."""
    return Schedule(_two(start, stop, steps), "linear", number("prompt_value", prompt_value))


def cosine(start: float, stop: float, *, steps: int, prompt_value: float = 1.0) -> Schedule:
    """From `start` to `stop` in `steps`, slowly at both ends."""
    return Schedule(_two(start, stop, steps), "cosine", number("prompt_value", prompt_value))


def exponential(start: float, stop: float, *, steps: int, prompt_value: float = 1.0) -> Schedule:
    """From `start` to `stop` in `steps`, by one factor each; neither may be 0."""
    return Schedule(_two(start, stop, steps), "exponential", number("prompt_value", prompt_value))


def first(steps: int, *, prompt_value: float = 1.0) -> Schedule:
    """1 in the first `steps` decode steps, 0 after them."""
    return Schedule(_two(1.0, 0.0, steps), "hold", number("prompt_value", prompt_value))


def piecewise(
    points: Sequence[Point], *, shape: Shape = "linear", prompt_value: float = 1.0
) -> Schedule:
    """Through the given (step, value) points, the first at step 0."""
    return Schedule(_points(points), shape, number("prompt_value", prompt_value))


def schedule_from_json(data: object) -> Schedule:
    """Reads what `Schedule.to_json` wrote.

    Raises:
        FormatError: If it is no schedule.
    """
    if not isinstance(data, dict) or set(cast("dict[str, object]", data)) != set(_KEYS):
        raise FormatError(f"A schedule has {', '.join(_KEYS)}, got {data!r:.80}.")
    read = cast("dict[str, object]", data)
    try:
        shape = cast("Shape", read["shape"])  # checked by the schedule
        return Schedule(
            _points(read["points"]), shape, number("prompt_value", read["prompt_value"])
        )
    except WorkbenchError as error:
        raise FormatError(f"The schedule {data!r:.80} cannot be used: {error}") from None


def _two(start: float, stop: float, steps: int) -> tuple[Point, Point]:
    return (0, number("start", start)), (count("steps", steps), number("stop", stop))


def _points(values: object) -> tuple[Point, ...]:
    pairs = [tuple(iterated("points", pair)) for pair in iterated("points", values)]
    if any(len(pair) != 2 for pair in pairs):
        raise OptionError("points", "pairs (step, value)", values)
    return tuple((index("step", step), number("value", value)) for step, value in pairs)
