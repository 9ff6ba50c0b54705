"""What can be asked of the worker: frozen specs, and the digest that is their only identity.

Plain data, no torch: script threads build them, the worker answers them (`app/jobs`).
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, Final

from app.codec import encode
from app.state import Edit, Recipe

LARGE: Final = 64  # positions of the head on show
LONG: Final = 8  # short questions that a long one lets go first


@dataclass(frozen=True)
class Spec:
    """Something to compute with a model; its fields are all the answer depends on."""

    model: str
    lets: ClassVar[int] = 0  # how many questions that come later may be answered first


@dataclass(frozen=True)
class About(Spec):
    """The model itself: size, device, layers."""


@dataclass(frozen=True)
class Reads(Spec):
    """Whether the model can read a prompt at all."""

    prompt: str


@dataclass(frozen=True)
class Read(Spec):
    """What the model says next, with and without the plan: the frame and the Overview."""

    prompt: str
    target: str | None
    foil: str | None
    pos: int | None
    plan: tuple[Edit, ...]


@dataclass(frozen=True)
class Lens(Spec):
    """The residual stream read as words: layers x positions."""

    prompt: str
    target: str | None
    foil: str | None
    pos: int | None
    plan: tuple[Edit, ...]


@dataclass(frozen=True)
class Trajectory(Spec):
    """Target and foil after every layer, at the position read."""

    prompt: str
    target: str | None
    foil: str | None
    pos: int | None
    plan: tuple[Edit, ...]


@dataclass(frozen=True)
class Components(Spec):
    """How much each part of the model adds to target - foil, directly."""

    prompt: str
    target: str | None
    foil: str | None
    pos: int | None
    plan: tuple[Edit, ...]


@dataclass(frozen=True)
class Attention(Spec):
    """Every head's pattern, small."""

    prompt: str
    plan: tuple[Edit, ...]


@dataclass(frozen=True)
class Head(Spec):
    """One head's pattern, exact; of a long prompt the window that holds `pos`."""

    prompt: str
    plan: tuple[Edit, ...]
    layer: int
    head: int
    pos: int | None = None


@dataclass(frozen=True)
class Direct(Spec):
    """A steering direction: how far apart it holds its two sets of texts."""

    recipe: Recipe


@dataclass(frozen=True)
class Dose(Spec):
    """The metric over a range of strengths of a direction."""

    lets: ClassVar[int] = LONG
    prompt: str
    target: str | None
    foil: str | None
    pos: int | None
    plan: tuple[Edit, ...]
    recipe: Recipe
    strengths: tuple[float, ...]


@dataclass(frozen=True)
class Twin(Spec):
    """A continuation, baseline beside steered, with the same noise."""

    lets: ClassVar[int] = LONG
    prompt: str
    plan: tuple[Edit, ...]
    recipe: Recipe
    strength: float
    new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Pack(Spec):
    """The plan as files that run elsewhere."""

    plan: tuple[Edit, ...]


def resolved(pos: int | None, count: int) -> int:
    """The position read: the one picked, or the last where none, or none such, is picked."""
    return pos if pos is not None and 0 <= pos < count else count - 1


def canonical(spec: Spec) -> str:
    """The spec as canonical JSON, with its kind."""
    data: dict[str, Any] = {"kind": type(spec).__name__, **encode(spec)}
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(spec: Spec) -> str:
    """The cache key of a spec, also stamped on what is made from its answer."""
    return sha256(canonical(spec).encode()).hexdigest()
