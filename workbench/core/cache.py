"""Key–value caches: what the columns before a pass left for it; arguments, never a model's.

    KeyValueCache  a generation's: preallocated storage that grows by the columns of each pass
    KeptKeys       keeps what one whole pass made, by layer, without copying
    SuffixCache    gives the kept columns before a change to many changed copies of the rest

Notable: keys are kept as the plan left them (after rotation), so that a cached run and a full one
see the same values.
"""

from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import PromptError

RealColumns = Bool[Tensor, "batch key"]
Keys = Float[Tensor, "batch head key d_head"]


@runtime_checkable
class Cache(Protocol):
    """What attention asks of the columns before a pass."""

    @property
    def length(self) -> int:
        """The columns before the pass, pads included."""
        ...

    @property
    def padded(self) -> bool:
        """Whether any column, those of the pass included, is a pad."""
        ...

    def reserve(self, real: Bool[Tensor, "batch pos"], *, padded: bool) -> RealColumns:
        """Opens the columns of a pass; returns which of all columns are real."""
        ...

    def append(
        self, layer: int, keys: Float[Tensor, "batch head pos d_head"], values: Tensor
    ) -> tuple[Keys, Tensor]:
        """All keys and values of a layer, from its new ones."""
        ...

    def cross(self, layer: int, keys: Keys, values: Tensor) -> None:
        """Keeps what a decoder's layer made of the source, once for all passes."""
        ...

    def crossed(self, layer: int) -> tuple[Keys, Tensor]:
        """What a decoder's layer made of the source in an earlier pass."""
        ...


@final
class KeyValueCache(Cache):
    """Keys and values of every layer for `capacity` columns; grows by the columns of each pass.

    Those that a decoder makes of its source do not grow, and are kept as they come.
    """

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
        self._keys = torch.empty(shape, dtype=dtype, device=device).unbind()
        self._values = torch.empty(shape, dtype=dtype, device=device).unbind()
        self._real = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self._crossed: dict[int, tuple[Keys, Tensor]] = {}
        self._length = 0
        self._padded = False

    @property
    @override
    def length(self) -> int:
        """The columns filled so far, pads included."""
        return self._length

    @property
    @override
    def padded(self) -> bool:
        """Whether any filled column is a pad."""
        return self._padded

    @override
    def reserve(self, real: Bool[Tensor, "batch pos"], *, padded: bool) -> RealColumns:
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

    @override
    def append(
        self, layer: int, keys: Float[Tensor, "batch head pos d_head"], values: Tensor
    ) -> tuple[Keys, Tensor]:
        """Stores a layer's new keys and values; returns views of all of them."""
        new = keys.shape[2]
        end, start = self._length, self._length - new
        all_keys, all_values = self._keys[layer], self._values[layer]
        all_keys.narrow(2, start, new).copy_(keys)  # once per layer and token: no indexing
        all_values.narrow(2, start, new).copy_(values)
        return all_keys.narrow(2, 0, end), all_values.narrow(2, 0, end)

    @override
    def cross(self, layer: int, keys: Keys, values: Tensor) -> None:
        self._crossed[layer] = keys, values

    @override
    def crossed(self, layer: int) -> tuple[Keys, Tensor]:
        return self._crossed[layer]

    def filled(
        self, layer: int
    ) -> tuple[
        Float[Tensor, "batch head key d_head"],
        Float[Tensor, "batch head key d_head"],
    ]:
        """A layer's keys and values so far, as views."""
        all_keys, all_values = self._keys[layer], self._values[layer]
        return all_keys.narrow(2, 0, self._length), all_values.narrow(2, 0, self._length)


@final
class KeptKeys(Cache):
    """The keys and values of one whole pass, which may come in several calls, by layer."""

    def __init__(self, *, padded: bool) -> None:
        self._padded = padded
        self._kept: dict[int, tuple[Keys, Tensor]] = {}
        self._crossed: dict[int, tuple[Keys, Tensor]] = {}

    @property
    @override
    def length(self) -> int:
        return 0

    @property
    @override
    def padded(self) -> bool:
        return self._padded

    @override
    def reserve(self, real: Bool[Tensor, "batch pos"], *, padded: bool) -> RealColumns:
        return real

    @override
    def append(
        self, layer: int, keys: Float[Tensor, "batch head pos d_head"], values: Tensor
    ) -> tuple[Keys, Tensor]:
        self._kept[layer] = keys, values
        return keys, values

    @override
    def cross(self, layer: int, keys: Keys, values: Tensor) -> None:
        self._crossed[layer] = keys, values

    @override
    def crossed(self, layer: int) -> tuple[Keys, Tensor]:
        return self._crossed[layer]

    def before(self, layer: int, column: int) -> tuple[Keys, Tensor]:
        """A layer's keys and values in the columns before `column`."""
        keys, values = self._kept[layer]
        return keys[:, :, :column], values[:, :, :column]


@final
class SuffixCache(Cache):
    """The columns before `column` of a kept pass, for `copies` of all its rows; holds no state."""

    def __init__(
        self, kept: KeptKeys, real: Bool[Tensor, "batch pos"] | None, column: int, copies: int
    ) -> None:
        self._kept, self._real, self._column, self._copies = kept, real, column, copies

    @property
    @override
    def length(self) -> int:
        return self._column

    @property
    @override
    def padded(self) -> bool:
        return self._real is not None

    @override
    def reserve(self, real: Bool[Tensor, "batch pos"], *, padded: bool) -> RealColumns:
        if self._real is None:
            return torch.nn.functional.pad(real, (self._column, 0), value=True)
        return torch.cat([self._real[:, : self._column].repeat(self._copies, 1), real], 1)

    @override
    def append(
        self, layer: int, keys: Float[Tensor, "batch head pos d_head"], values: Tensor
    ) -> tuple[Keys, Tensor]:
        old_keys, old_values = self._kept.before(layer, self._column)
        times = (self._copies, 1, 1, 1)
        return (
            torch.cat([old_keys.repeat(times), keys], 2),
            torch.cat([old_values.repeat(times), values], 2),
        )

    @override
    def cross(self, layer: int, keys: Keys, values: Tensor) -> None:
        """Nothing: changed copies of a source are of one pass."""

    @override
    def crossed(self, layer: int) -> tuple[Keys, Tensor]:
        keys, values = self._kept.crossed(layer)
        return keys.repeat(self._copies, 1, 1, 1), values.repeat(self._copies, 1, 1, 1)
