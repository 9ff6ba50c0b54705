"""Rotary positions: angles are made once per pass from absolute positions; no table, no state."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.models.layers.context import Angles

# The parameters each kind of scaling reads, and those which change nothing at this value.
READ: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
)
UNCHANGED: Mapping[str, float] = MappingProxyType({"partial_rotary_factor": 1.0})

Heads = Float[Tensor, "batch pos head d_head"]


@final
class Rotary:
    """Rotation by frequencies that are fixed when built.

    Coordinate i turns with i + half (the Llama and NeoX layout), or with `neighbours` each pair of
    adjacent ones (that of GPT-J), which `rotate_neighbours` turns.
    """

    def __init__(
        self,
        frequencies: Float[Tensor, " half"],
        scaling: float = 1.0,
        *,
        neighbours: bool = False,
    ) -> None:
        self._frequencies, self._scaling, self._neighbours = frequencies, scaling, neighbours

    def angles(self, positions: Int[Tensor, "row pos"], dtype: torch.dtype) -> Angles:
        """Cosines and sines at absolute positions, in float32 until the last step."""
        frequencies = self._frequencies.to(positions.device)
        turn = positions[:, :, None].float() * frequencies
        pairs = turn.repeat_interleave(2, -1) if self._neighbours else torch.cat([turn, turn], -1)
        both = pairs[:, :, None, :]  # row pos 1 d_rotary
        return (both.cos() * self._scaling).to(dtype), (both.sin() * self._scaling).to(dtype)


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


def rotary(d_head: int, parameters: Mapping[str, Any]) -> Rotary:
    """The rotary embedding a config's `rope_parameters` describe.

    Raises:
        OptionError: If the kind of scaling is not known here, a parameter of it is missing or not
            above 0, or there is one that it does not read.
    """
    if d_head % 2:
        raise OptionError("head_dim", "even: rotary positions turn pairs", d_head)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in READ:
        raise OptionError("rope_type", f"one of {', '.join(map(repr, READ))}", kind)
    _check(kind, parameters)
    base = float(parameters.get("rope_theta", 10000.0))
    steps = torch.arange(0, d_head, 2, dtype=torch.float32, device="cpu") / d_head
    frequencies = 1.0 / base**steps
    if kind == "default":
        return Rotary(frequencies)
    if kind == "linear":
        return Rotary(frequencies / float(parameters["factor"]))
    return Rotary(_llama3(frequencies, parameters))


def _check(kind: str, parameters: Mapping[str, Any]) -> None:
    for name in (*READ[kind], "rope_theta"):
        value = parameters.get(name, 10000.0 if name == "rope_theta" else None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise OptionError(f"{name} of rope_type {kind!r}", "a number above 0", value)
    known = {*READ[kind], "rope_theta", "rope_type", "type"}
    others = {name: value for name, value in parameters.items() if name not in known}
    if any(value is not None and UNCHANGED.get(name) != value for name, value in others.items()):
        raise OptionError(f"rope_type {kind!r}", f"described by {', '.join(sorted(known))}", others)


def _llama3(frequencies: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's scaling by wavelength: long waves slowed, short ones kept, blended between."""
    factor, original = float(parameters["factor"]), parameters["original_max_position_embeddings"]
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    wavelength = 2 * torch.pi / frequencies
    blend = (original / wavelength - low) / (high - low)
    mixed = (1 - blend) * frequencies / factor + blend * frequencies
    slow = torch.where(wavelength > original / low, frequencies / factor, mixed)
    return torch.where(wavelength < original / high, frequencies, slow)
