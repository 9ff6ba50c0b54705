"""The classic key-value cache: keys and values of what was read, to go on from.

Notable: keys are kept as `hook_k` leaves them, before rotation, as the classic keeps them; those so
far are turned again for every forward that goes on from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.core.cache import KeyValueCache
from workbench.core.errors import OptionError, ShapeError
from workbench.core.protocols import Model
from workbench.core.sites import Site, Sites, select
from workbench.core.tap import UNTAPPED
from workbench.models.transformer import Transformer
from workbench.models.views.stacks import blocks_of

Entry = Float[Tensor, "batch key head d_head"]
New = Float[Tensor, "batch new head d_head"]
Whole = Float[Tensor, "batch whole head d_head"]


def kept_sites(model: Model) -> Sites:
    """Where a forward that is given a cache looks."""
    return select(lambda site: site.short in ("attn.hook_k", "attn.hook_v"), model.sites)


def turned(model: Model, layer: int, keys: Entry, positions: Int[Tensor, "batch key"]) -> Entry:
    """Keys as queries meet them: some normed, and by rotary models turned by their positions."""
    if not isinstance(model, Transformer) or model.stack.rotary is None:
        return keys
    attn = blocks_of(model.stack)[layer].attn
    keys = attn.k_norm.normalise(keys, UNTAPPED)
    return attn.turn(keys, model.stack.rotary.angles(positions, keys.dtype))


@final
@dataclass(eq=False)
class HookedTransformerKeyValueCacheEntry:
    """One layer's keys and values so far; `batch key head d_head`."""

    past_keys: Entry
    past_values: Entry
    frozen: bool = False

    def append(self, new_keys: New, new_values: New) -> tuple[Whole, Whole]:
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
        frozen: bool = False,  # noqa: FBT001, FBT002 - the classic signature
    ) -> None:
        self.entries = entries
        self.previous_attention_mask = previous_attention_mask
        self.frozen = frozen

    @classmethod
    def init_cache(
        cls,
        cfg: HookedTransformerConfig,
        device: torch.device | str | None = None,
        batch_size: int = 1,
    ) -> "HookedTransformerKeyValueCache":
        """An empty cache."""
        shape = (batch_size, 0, cfg.key_heads, cfg.d_head)

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

    def opened(self, model: Model, layers: range, new: int) -> KeyValueCache:
        """The core's cache with what these layers have read in it, and room for `new` columns.

        Raises:
            ShapeError: If one of them has not read what the mask says was read.
        """
        mask = self.previous_attention_mask
        batch, past, heads, d_head = *mask.shape, *self.entries[0].past_keys.shape[2:]
        dtype, device = self.entries[0].past_keys.dtype, mask.device
        cache = KeyValueCache(
            len(self.entries), batch, past + new, heads, d_head, dtype=dtype, device=device
        )
        if not past:
            return cache
        real = mask.bool()
        positions = (real.cumsum(1) - 1).clamp(min=0)
        cache.reserve(real, padded=not bool(real.all()))
        for layer in layers:
            entry = self.entries[layer]
            if entry.past_keys.shape[1] != past:
                expected = f"{past} positions in layer {layer}, which every run so far has passed"
                raise ShapeError("past_kv_cache", expected, f"{entry.past_keys.shape[1]}")
            keys = turned(model, layer, entry.past_keys, positions)
            cache.append(layer, keys.transpose(1, 2), entry.past_values.transpose(1, 2))
        return cache

    def keep(self, seen: Mapping[Site, Tensor], real: Bool[Tensor, "batch new"]) -> None:
        """Adds what a forward saw at `hook_k` and `hook_v`, unless frozen."""
        if self.frozen:
            return
        for layer, entry in enumerate(self.entries):
            keys = seen.get(Site("blocks.{}.attn.hook_k", layer))
            if keys is not None:
                entry.append(keys, seen[Site("blocks.{}.attn.hook_v", layer)])
        self.append_attention_mask(real)

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
