"""Rotary positions: angles are made once per pass from absolute positions; no table, no state."""

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.models.layers.context import Angles

Heads = Float[Tensor, "batch pos head d_head"]


@final
class Rotary:
    """Rotation by halves (the Llama and NeoX layout), by frequencies that are fixed when built."""

    def __init__(self, frequencies: Float[Tensor, " half"], scaling: float = 1.0) -> None:
        self._frequencies, self._scaling = frequencies, scaling

    def angles(self, positions: Int[Tensor, "row pos"], dtype: torch.dtype) -> Angles:
        """Cosines and sines at absolute positions, in float32 until the last step."""
        frequencies = self._frequencies.to(positions.device)
        turn = positions[:, :, None].float() * frequencies
        both = torch.cat([turn, turn], dim=-1)[:, :, None, :]  # row pos 1 d_rotary
        return (both.cos() * self._scaling).to(dtype), (both.sin() * self._scaling).to(dtype)


def rotate(x: Heads, angles: Angles) -> Heads:
    """Rotates each head's pairs (i, i + half) by its position's angles."""
    cos, sin = angles
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def rotary(d_head: int, parameters: Mapping[str, Any]) -> Rotary:
    """The rotary embedding a config's `rope_parameters` describe.

    Raises:
        OptionError: If the kind of scaling is not known here.
    """
    base = float(parameters.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    steps = torch.arange(0, d_head, 2, dtype=torch.float32, device="cpu") / d_head
    frequencies = 1.0 / base**steps
    if kind == "default":
        return Rotary(frequencies)
    if kind == "linear":
        return Rotary(frequencies / float(parameters["factor"]))
    if kind == "llama3":
        return Rotary(_llama3(frequencies, parameters))
    raise OptionError("rope_type", "one of 'default', 'linear', 'llama3'", kind)


def _llama3(frequencies: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's scaling by wavelength: long waves slowed, short ones kept, blended between."""
    factor, original = float(parameters["factor"]), parameters["original_max_position_embeddings"]
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    wavelength = 2 * torch.pi / frequencies
    blend = (original / wavelength - low) / (high - low)
    mixed = (1 - blend) * frequencies / factor + blend * frequencies
    slow = torch.where(wavelength > original / low, frequencies / factor, mixed)
    return torch.where(wavelength < original / high, frequencies, slow)
