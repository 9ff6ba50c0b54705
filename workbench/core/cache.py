"""The key–value cache of a generation: preallocated, and an argument, never a model's.

Notable: `append` writes into storage that this one generation owns and hands back views; keys are
kept as the plan left them (after rotation), so a cached run and a full one see the same values.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.errors import PromptError


@final
class KeyValueCache:
    """Keys and values of every layer for `capacity` columns; grows by the columns of each pass."""

    def __init__(  # noqa: PLR0913 - the sizes of one tensor
        self,
        n_layers: int,
        batch: int,
        capacity: int,
        n_heads: int,
        d_head: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (n_layers, batch, n_heads, capacity, d_head)  # heads first: what the kernel reads
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._real = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self._length = 0
        self._padded = False

    @property
    def length(self) -> int:
        """The columns filled so far, pads included."""
        return self._length

    @property
    def padded(self) -> bool:
        """Whether any filled column is a pad."""
        return self._padded

    def reserve(
        self, real: Bool[Tensor, "batch pos"], *, padded: bool
    ) -> Bool[Tensor, "batch key"]:
        """Opens columns for a pass; returns which of all columns, new ones included, are real.

        Raises:
            PromptError: If the cache is full.
        """
        end = self._length + real.shape[1]
        if end > self._real.shape[1]:
            raise PromptError(f"The cache holds {self._real.shape[1]} positions, {end} are needed.")
        self._real[:, self._length : end] = real
        self._padded |= padded
        self._length = end
        return self._real[:, :end]

    def append(
        self, layer: int, keys: Float[Tensor, "batch head pos d_head"], values: Tensor
    ) -> tuple[Float[Tensor, "batch head key d_head"], Tensor]:
        """Stores a layer's new keys and values; returns views of all of them."""
        end, start = self._length, self._length - keys.shape[2]
        self._keys[layer, :, :, start:end] = keys
        self._values[layer, :, :, start:end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def filled(
        self, layer: int
    ) -> tuple[
        Float[Tensor, "batch head key d_head"],
        Float[Tensor, "batch head key d_head"],
    ]:
        """A layer's keys and values so far, as views."""
        return self._keys[layer, :, :, : self._length], self._values[layer, :, :, : self._length]
