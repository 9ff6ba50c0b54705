"""Rotary positions: angles are made once per pass from absolute positions; no table, no state.

Notable: two kinds of scaling depend on how long a text is (`dynamic`, `longrope`). Here that is the
length of each row, as if it were alone. Keys are kept turned, so a pass that makes a text longer
than its kept keys were turned for is refused, where transformers goes on with keys turned by two
rules.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.cache import Cache, SuffixCache
from workbench.core.data import Batch
from workbench.core.errors import OptionError, PromptError
from workbench.models.layers.context import Angles

# The parameters each kind of scaling needs, and those it reads where they are there.
NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "yarn": ("original_max_position_embeddings",),
        "longrope": ("original_max_position_embeddings",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
)
OPTIONAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "yarn": (
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
        ),
        "longrope": ("factor", "attention_factor"),
    }
)
OTHERS: Mapping[str, tuple[str, ...]] = MappingProxyType(  # which are no numbers
    {"yarn": ("truncate",), "longrope": ("short_factor", "long_factor")}
)
UNCHANGED: Mapping[str, float] = MappingProxyType({"partial_rotary_factor": 1.0})
ORIGINAL = "original_max_position_embeddings"

Heads = Float[Tensor, "batch pos head d_head"]
Lengths = Int[Tensor, " row"]
Frequencies = Float[Tensor, " half"]


class Stretch(ABC):
    """Frequencies that depend on how many tokens a text has."""

    @abstractmethod
    def frequencies(self, lengths: Lengths) -> Float[Tensor, "row half"]:
        """Those of texts of these lengths."""

    @abstractmethod
    def bends(self, before: Lengths, after: Lengths) -> bool:
        """Whether any text that grows from one length to the other turns otherwise from then on."""


@final
class Rotary:
    """Rotation by frequencies that are fixed when built, or stretched by the length of a text.

    Coordinate i turns with i + half (the Llama and NeoX layout), or with `neighbours` each pair of
    adjacent ones (that of GPT-J), which `rotate_neighbours` turns.
    """

    def __init__(
        self,
        frequencies: Frequencies,
        scaling: float = 1.0,
        *,
        neighbours: bool = False,
        stretch: Stretch | None = None,
    ) -> None:
        self._frequencies, self._scaling, self._neighbours = frequencies, scaling, neighbours
        self.stretch = stretch

    def of_pass(self, batch: Batch, cache: Cache | None, dtype: torch.dtype) -> Angles:
        """The angles of a pass, one row of them where all rows stand at the same positions.

        Raises:
            PromptError: If keys are kept that were turned as those of a shorter text.
        """
        rows = 1 if batch.uniform else len(batch.tokens)
        positions, ends = batch.positions[:rows], batch.ends[:rows]
        if self.stretch is None:
            return self.angles(positions, dtype)
        grows = cache is not None and cache.length > 0 and not isinstance(cache, SuffixCache)
        if grows and self.stretch.bends(batch.start[:rows], ends):
            raise PromptError(
                f"The text grows to {int(ends.max())} tokens, from where its rotary positions "
                "turn otherwise, and its kept keys were turned as those of a shorter text. Run "
                "the whole text at once, without a cache."
            )
        return self.angles(positions, dtype, ends)

    def angles(
        self, positions: Int[Tensor, "row pos"], dtype: torch.dtype, lengths: Lengths | None = None
    ) -> Angles:
        """Cosines and sines at absolute positions, in float32 until the last step.

        `lengths` are those of each row's text; without them, as in short texts.
        """
        frequencies = self._frequencies.to(positions.device)
        if self.stretch is not None and lengths is not None:
            frequencies = self.stretch.frequencies(lengths)[:, None]  # row 1 half
        turn = positions[:, :, None].float() * frequencies
        pairs = turn.repeat_interleave(2, -1) if self._neighbours else torch.cat([turn, turn], -1)
        both = pairs[:, :, None, :]  # row pos 1 d_rotary
        return (both.cos() * self._scaling).to(dtype), (both.sin() * self._scaling).to(dtype)


@final
class DynamicStretch(Stretch):
    """The base grows with the text, from `original` tokens on (NTK scaling)."""

    def __init__(self, width: int, base: float, factor: float, original: int) -> None:
        self._width, self._base, self._factor, self._original = width, base, factor, original

    @override
    def frequencies(self, lengths: Lengths) -> Float[Tensor, "row half"]:
        beyond = lengths.clamp(min=self._original).double() / self._original
        growth = self._factor * beyond - (self._factor - 1)
        base = self._base * growth ** (self._width / (self._width - 2))
        steps = torch.arange(0, self._width, 2, device=lengths.device).float() / self._width
        return 1.0 / base.float()[:, None] ** steps

    @override
    def bends(self, before: Lengths, after: Lengths) -> bool:
        return bool((after > before.clamp(min=self._original)).any())


@final
class LongStretch(Stretch):
    """One set of frequencies for texts of up to `original` tokens, another for longer ones."""

    def __init__(self, short: Frequencies, long: Frequencies, original: int) -> None:
        self._short, self._long, self._original = short, long, original

    @override
    def frequencies(self, lengths: Lengths) -> Float[Tensor, "row half"]:
        short, long = self._short.to(lengths.device), self._long.to(lengths.device)
        return torch.where((lengths > self._original)[:, None], long, short)

    @override
    def bends(self, before: Lengths, after: Lengths) -> bool:
        return bool(((before <= self._original) & (after > self._original)).any())


def rotate(x: Heads, angles: Angles) -> Heads:
    """Rotates each head's pairs (i, i + half) by its position's angles.

    Coordinates beyond the width of the angles stay as they are.
    """
    cos, sin = angles
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([rotate(x[..., :width], angles), x[..., width:]], -1)
    half = width // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def rotate_neighbours(x: Heads, angles: Angles) -> Heads:
    """The same for pairs (2i, 2i + 1)."""
    cos, sin = angles
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([rotate_neighbours(x[..., :width], angles), x[..., width:]], -1)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return x * cos + turned * sin


@final
@dataclass(frozen=True, eq=False)
class _Asked:
    """What a config asks for: the width that turns, the base, and the context it names."""

    width: int
    base: float
    n_ctx: int | None
    values: Mapping[str, Any]

    @property
    def steps(self) -> Frequencies:
        return torch.arange(0, self.width, 2, dtype=torch.float32, device="cpu") / self.width

    @property
    def plain(self) -> Frequencies:
        return 1.0 / self.base**self.steps

    @property
    def original(self) -> float:
        return float(self.values[ORIGINAL])

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        return None if value is None else float(value)


def rotary(
    d_head: int,
    parameters: Mapping[str, Any],
    n_ctx: int | None = None,
    *,
    neighbours: bool = False,
) -> Rotary:
    """The rotary embedding a config's `rope_parameters` describe.

    `n_ctx` is the config's `max_position_embeddings`, which some kinds of scaling start from.

    Raises:
        OptionError: If the kind of scaling is not known here, a parameter of it is missing or not
            above 0, or there is one that it does not read.
    """
    if d_head % 2:
        raise OptionError("head_dim", "even: rotary positions turn pairs", d_head)
    kind = kind_of(parameters)
    values = dict(parameters)
    if ORIGINAL in NEEDED[kind] and values.get(ORIGINAL) is None:
        values[ORIGINAL] = n_ctx
    _check(kind, values)
    asked = _Asked(d_head, float(values.get("rope_theta", 10000.0)), n_ctx, values)
    frequencies, scaling = MADE[kind](asked)
    stretch = STRETCHES[kind](asked) if kind in STRETCHES else None
    return Rotary(frequencies, scaling, neighbours=neighbours, stretch=stretch)


def kind_of(parameters: Mapping[str, Any]) -> str:
    """The kind of scaling, by either of the names it goes by.

    Raises:
        OptionError: If it is not known here.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in NEEDED:
        raise OptionError("rope_type", f"one of {', '.join(map(repr, NEEDED))}", kind)
    return kind


def reach(n_ctx: int, parameters: Mapping[str, Any]) -> int:
    """How long a text may be: what scaling makes of the context that a config names."""
    kind, factor = kind_of(parameters), parameters.get("factor")
    if kind not in ("dynamic", "yarn") or not isinstance(factor, int | float):
        return n_ctx
    before = parameters.get(ORIGINAL) if kind == "yarn" else n_ctx
    return max(n_ctx, int(factor * before)) if isinstance(before, int) else n_ctx


def _check(kind: str, values: Mapping[str, Any]) -> None:
    for name in (*NEEDED[kind], *OPTIONAL.get(kind, ()), "rope_theta"):
        value = values.get(name, 10000.0 if name == "rope_theta" else None)
        if value is None and name not in NEEDED[kind]:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise OptionError(f"{name} of rope_type {kind!r}", "a number above 0", value)
    known = {*NEEDED[kind], *OPTIONAL.get(kind, ()), *OTHERS.get(kind, ())}
    known |= {"rope_theta", "rope_type", "type"}
    others = {name: value for name, value in values.items() if name not in known}
    if any(value is not None and UNCHANGED.get(name) != value for name, value in others.items()):
        raise OptionError(f"rope_type {kind!r}", f"described by {', '.join(sorted(known))}", others)


def _default(asked: _Asked) -> tuple[Frequencies, float]:
    return asked.plain, 1.0


def _linear(asked: _Asked) -> tuple[Frequencies, float]:
    return asked.plain / float(asked.values["factor"]), 1.0


def _llama3(asked: _Asked) -> tuple[Frequencies, float]:
    """Llama 3.1's scaling by wavelength: long waves slowed, short ones kept, blended between."""
    values, frequencies = asked.values, asked.plain
    factor, original = float(values["factor"]), asked.original
    low, high = float(values["low_freq_factor"]), float(values["high_freq_factor"])
    wavelength = 2 * torch.pi / frequencies
    blend = (original / wavelength - low) / (high - low)
    mixed = (1 - blend) * frequencies / factor + blend * frequencies
    slow = torch.where(wavelength > original / low, frequencies / factor, mixed)
    return torch.where(wavelength < original / high, frequencies, slow), 1.0


def _yarn(asked: _Asked) -> tuple[Frequencies, float]:
    """Peng et al. 2023, arXiv:2309.00071: slow waves are interpolated, fast ones kept."""
    factor = _factor(asked)
    fast, slow = asked.number("beta_fast") or 32.0, asked.number("beta_slow") or 1.0
    low, high = _turning(asked, fast), _turning(asked, slow)
    if _flag(asked, "truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, asked.width - 1)
    high = high + 0.001 if low == high else high
    ramp = (torch.arange(asked.width // 2, dtype=torch.float32, device="cpu") - low) / (high - low)
    kept = 1 - ramp.clamp(0, 1)
    return asked.plain / factor * (1 - kept) + asked.plain * kept, _yarn_scaling(asked, factor)


def _turning(asked: _Asked, turns: float) -> float:
    """The coordinate that turns so often in a text of the original length."""
    return (
        asked.width * math.log(asked.original / (turns * 2 * math.pi)) / (2 * math.log(asked.base))
    )


def _yarn_scaling(asked: _Asked, factor: float) -> float:
    given = asked.number("attention_factor")
    if given is not None:
        return given

    def grown(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    one, other = asked.number("mscale"), asked.number("mscale_all_dim")
    return grown(one) / grown(other) if one and other else grown(1.0)


def _longrope(asked: _Asked) -> tuple[Frequencies, float]:
    """Ding et al. 2024, arXiv:2402.13753: each pair has factors of its own, searched for."""
    factor, given = _factor(asked), asked.number("attention_factor")
    grown = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(asked.original))
    return _divided(asked, "short_factor"), grown if given is None else given


def _dynamic_stretch(asked: _Asked) -> DynamicStretch:
    if asked.n_ctx is None:
        raise OptionError("max_position_embeddings", "given with rope_type 'dynamic'", None)
    return DynamicStretch(asked.width, asked.base, float(asked.values["factor"]), asked.n_ctx)


def _long_stretch(asked: _Asked) -> LongStretch:
    short, long = _divided(asked, "short_factor"), _divided(asked, "long_factor")
    return LongStretch(short, long, int(asked.original))


def _divided(asked: _Asked, name: str) -> Frequencies:
    factors = asked.values.get(name)
    allowed = f"{asked.width // 2} numbers above 0"
    if not isinstance(factors, list | tuple):
        raise OptionError(f"{name} of rope_type 'longrope'", allowed, factors)
    listed = list(cast("list[Any]", factors))
    right = all(isinstance(f, int | float) and not isinstance(f, bool) and f > 0 for f in listed)
    if not right or len(listed) != asked.width // 2:
        raise OptionError(f"{name} of rope_type 'longrope'", allowed, listed)
    return 1.0 / (torch.tensor(listed, dtype=torch.float32, device="cpu") * asked.base**asked.steps)


def _factor(asked: _Asked) -> float:
    given = asked.number("factor")
    return (asked.n_ctx or asked.original) / asked.original if given is None else given


def _flag(asked: _Asked, name: str, *, default: bool) -> bool:
    value = asked.values.get(name, default)
    if not isinstance(value, bool):
        raise OptionError(f"{name} of rope_type 'yarn'", "true or false", value)
    return value


MADE: Mapping[str, Callable[[_Asked], tuple[Frequencies, float]]] = MappingProxyType(
    {
        "default": _default,
        "linear": _linear,
        "dynamic": _default,
        "yarn": _yarn,
        "longrope": _longrope,
        "llama3": _llama3,
    }
)
STRETCHES: Mapping[str, Callable[[_Asked], DynamicStretch | LongStretch]] = MappingProxyType(
    {"dynamic": _dynamic_stretch, "longrope": _long_stretch}
)
