"""Runs that keep activations: in a cache of their own, or in a dictionary of the caller's."""
# ruff: noqa: FBT001, FBT002, PLR0913, A002 - the classic signatures

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.compat.transformer_lens.activation_cache import ActivationCache
from workbench.compat.transformer_lens.calls import Call, Given, ReturnType
from workbench.compat.transformer_lens.facade.hooking import Hooking
from workbench.compat.transformer_lens.facade.text import Text
from workbench.compat.transformer_lens.facade.weights import Weights
from workbench.compat.transformer_lens.hooks import Here, Pairs
from workbench.compat.transformer_lens.key_value_cache import HookedTransformerKeyValueCache
from workbench.compat.transformer_lens.recording import Kept, NamesFilter, Recording, wanted
from workbench.compat.transformer_lens.slices import Slice, SliceInput
from workbench.compat.transformer_lens.taps import check_fired
from workbench.compat.transformer_lens.tokens import PaddingSide
from workbench.core.sites import Site


class Caching(Hooking, Text, Weights):
    """What a facade keeps of a run; a cache reads the weights and the vocabulary too."""

    def run_with_cache(
        self,
        input: Given,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
        *,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        incl_bwd: bool = False,
        fwd_hooks: Pairs = (),
        bwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[Any, Any]:
        """What `forward` returns, and the activations as the hooks left them.

        `names_filter` is a name, glob, predicate, or several names; None keeps what the classic
        flags enable, and the cache computes the other sites when they are read. `incl_bwd` adds
        `name_grad`, the gradient of a scalar output. `pos_slice` cuts positions (queries in
        attention squares), an int keeping the axis.

        Raises:
            UnknownNameError: If a name fits no site.
            NotRecordedError: If the run stops before a site asked for by name.
        """
        call = Call(
            input, return_type, loss_per_token, prepend_bos, padding_side, start_at_layer,
            tokens, shortformer_pos_embed, attention_mask, stop_at_layer, past_kv_cache,
        )  # fmt: skip
        kept = Kept(device, remove_batch_dim, pos_slice)
        chosen = wanted(names_filter, self._hooks, self._model.sites, self._enabled())
        recording = Recording(call, self._reading(call), self._model, kept)
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            hooked = self._tap(recording.reading.batch)
            output, entries = recording.run(hooked, chosen, gradients=incl_bwd)
        check_fired(hooked, [name for name, _ in fwd_hooks], call.ran(self.cfg.n_layers))
        if not return_cache_object:
            return output, entries
        more = recording.more(self._texts_if_any(), hooked)
        return output, ActivationCache(entries, self, not remove_batch_dim, more=more)

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Adds hooks that fill `cache` in every run from now on, and returns it."""
        found, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, cache
        )
        for name, hook in forward:
            self.add_hook(name, hook)
        for name, hook in backward:
            self.add_hook(name, hook, "bwd")
        return found

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, Tensor], Pairs, Pairs]:
        """A dictionary, and hooks that fill it when they are given to a run."""
        found: dict[str, Tensor] = {} if cache is None else cache
        kept = Kept(device, remove_batch_dim, pos_slice)
        sites = wanted(names_filter, self._hooks, self._model.sites, self._enabled()).sites

        def save(value: Tensor, hook: Here) -> None:
            found[hook.name] = kept.entry(Site.parse(hook.name), value)

        def save_slope(value: Tensor, hook: Here) -> None:
            found[f"{hook.name}_grad"] = kept.entry(Site.parse(hook.name), value)

        forward = [(str(site), save) for site in sites]
        return found, forward, [(str(site), save_slope) for site in sites] if incl_bwd else []
