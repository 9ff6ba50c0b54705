"""The classic key-value cache: keys and values of what was read, to go on from.

Notable: keys are kept as the core keeps them, after rotation; the classic keeps them before. For
models without rotary positions there is no difference.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.core.cache import KeyValueCache
from workbench.core.errors import OptionError, ShapeError

Entry = Float[Tensor, "batch key head d_head"]


@final
@dataclass(eq=False)
class HookedTransformerKeyValueCacheEntry:
    """One layer's keys and values so far; `batch key head d_head`."""

    past_keys: Entry
    past_values: Entry
    frozen: bool = False

    def append(self, new_keys: Entry, new_values: Entry) -> tuple[Entry, Entry]:
        """All keys and values with the new ones after them; kept, unless it is frozen.

        Raises:
            ShapeError: If the new ones do not fit.
        """
        for new, past in ((new_keys, self.past_keys), (new_values, self.past_values)):
            if new.shape[0] != past.shape[0] or new.shape[2:] != past.shape[2:]:
                raise ShapeError("the cache", f"{tuple(past.shape)}", f"{tuple(new.shape)}")
        keys = torch.cat([self.past_keys, new_keys], 1)
        values = torch.cat([self.past_values, new_values], 1)
        if not self.frozen:
            self.past_keys, self.past_values = keys, values
        return keys, values


@final
class HookedTransformerKeyValueCache:
    """Keys, values and masks of what a model has read; a forward adds what is new.

    Made for one caller: a forward that is given it writes to it. `freeze()` makes it read only, so
    that several texts can go on from one prefix.
    """

    def __init__(
        self,
        entries: list[HookedTransformerKeyValueCacheEntry],
        previous_attention_mask: Int[Tensor, "batch pos"],
    ) -> None:
        self.entries = entries
        self.previous_attention_mask = previous_attention_mask
        self.frozen = False

    @classmethod
    def init_cache(
        cls,
        cfg: HookedTransformerConfig,
        device: torch.device | str | None = None,
        batch_size: int = 1,
    ) -> "HookedTransformerKeyValueCache":
        """An empty cache."""
        shape = (batch_size, 0, cfg.groups, cfg.d_head)

        def nothing() -> Tensor:
            return torch.empty(shape, device=device, dtype=cfg.dtype)

        entries = [
            HookedTransformerKeyValueCacheEntry(nothing(), nothing()) for _ in range(cfg.n_layers)
        ]
        return cls(entries, torch.empty((batch_size, 0), dtype=torch.int, device=device))

    def freeze(self) -> None:
        """Makes it read only."""
        self._set(frozen=True)

    def unfreeze(self) -> None:
        """Lets forwards add to it again."""
        self._set(frozen=False)

    def append_attention_mask(
        self, attention_mask: Int[Tensor, "batch new"] | Bool[Tensor, "batch new"]
    ) -> Int[Tensor, "batch pos"]:
        """The whole mask with the new part after it; kept, unless the cache is frozen.

        Raises:
            ShapeError: If the rows do not match.
        """
        before = self.previous_attention_mask
        if len(attention_mask) != len(before):
            raise ShapeError("the cache", f"{len(before)} rows", f"{len(attention_mask)}")
        whole = torch.cat([before, attention_mask.to(before)], 1)
        if not self.frozen:
            self.previous_attention_mask = whole
        return whole

    def opened(self, new: int) -> KeyValueCache:
        """The core's cache with all of this in it and room for `new` columns."""
        keys = self.entries[0].past_keys
        batch, past, heads, d_head = keys.shape
        cache = KeyValueCache(
            len(self.entries),
            batch,
            past + new,
            heads,
            d_head,
            dtype=keys.dtype,
            device=keys.device,
        )
        if past:
            real = self.previous_attention_mask.bool()
            cache.reserve(real, padded=not bool(real.all()))
            for layer, entry in enumerate(self.entries):
                cache.append(
                    layer, entry.past_keys.transpose(1, 2), entry.past_values.transpose(1, 2)
                )
        return cache

    def keep(self, cache: KeyValueCache) -> None:
        """Takes over what a forward has added to the cache it was given, unless frozen."""
        if self.frozen:
            return
        for layer, entry in enumerate(self.entries):
            keys, values = cache.filled(layer)
            entry.past_keys, entry.past_values = keys.transpose(1, 2), values.transpose(1, 2)

    def __getitem__(self, layer: int) -> HookedTransformerKeyValueCacheEntry:
        """One layer's keys and values.

        Raises:
            OptionError: If there is no such layer.
        """
        if not -len(self.entries) <= layer < len(self.entries):
            raise OptionError("the cache's layer", f"below {len(self.entries)}", layer)
        return self.entries[layer]

    def _set(self, *, frozen: bool) -> None:
        self.frozen = frozen
        for entry in self.entries:
            entry.frozen = frozen
