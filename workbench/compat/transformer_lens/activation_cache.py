# ruff: noqa: FBT001, FBT002 - the classic signatures
"""The classic ActivationCache: recorded activations by name, and the stream taken apart.

Notable: an analysis never changes the cache and never prints. `hook_result` is computed from `z`
when it is read, so `compute_head_results` has nothing to do.
"""

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.compat.transformer_lens._attribution import (
    frozen_norm,
    logit_attributions,
    recomputed_norm,
    scale_of,
)
from workbench.compat.transformer_lens._protocols import CachedModel
from workbench.compat.transformer_lens._residual import (
    Parts,
    Stack,
    Stream,
    full,
    head_results,
    resolved,
)
from workbench.compat.transformer_lens.names import get_act_name
from workbench.compat.transformer_lens.slices import Slice, SliceInput, as_slice
from workbench.core.errors import OptionError, ShapeError, UnknownNameError

Some: TypeAlias = Slice | SliceInput
Key: TypeAlias = str | tuple[str | int | None, ...]
# A Stack, or with return_labels a Stack and its labels. Any: else every caller would have to say
# which, and fifteen overloads would stand here.
Labelled: TypeAlias = Any
More: TypeAlias = Callable[[str], Tensor]
_RESULT = ".attn.hook_result"


@final
class ActivationCache:
    """Activations by their full names, and by shorthand: `cache["k", 6]`, `cache["resid_pre", -1]`.

    A stack has its components first: `component …batch pos d_model`. `layer=None` or −1 means after
    the last block. `more(name)` gives an activation that was not recorded, where one can be had;
    it raises KeyError for others. It is asked by `cache[...]`, never listed.
    """

    def __init__(
        self,
        cache_dict: Mapping[str, Tensor],
        model: CachedModel,
        has_batch_dim: bool = True,
        *,
        more: More | None = None,
    ) -> None:
        self.cache_dict: dict[str, Tensor] = dict(cache_dict)
        self.model = model
        self.has_batch_dim = has_batch_dim
        self._more = more

    @property
    def has_embed(self) -> bool:
        """Whether the token embeddings were recorded."""
        return "hook_embed" in self.cache_dict

    @property
    def has_pos_embed(self) -> bool:
        """Whether learned positions were recorded."""
        return "hook_pos_embed" in self.cache_dict

    def __getitem__(self, key: Key) -> Tensor:
        """An activation by its full name, shorthand, or (name, layer, layer type).

        Raises:
            UnknownNameError: If there is none; names the nearest.
        """
        if isinstance(key, str) and key in self.cache_dict:
            return self.cache_dict[key]
        return self._read(self._name(key))

    def __contains__(self, name: object) -> bool:
        return name in self.cache_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __len__(self) -> int:
        return len(self.cache_dict)

    @override
    def __repr__(self) -> str:
        return f"ActivationCache with keys {list(self.cache_dict)}"

    def keys(self) -> KeysView[str]:
        """The full names."""
        return self.cache_dict.keys()

    def values(self) -> ValuesView[Tensor]:
        """The activations."""
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, Tensor]:
        """Full names and activations."""
        return self.cache_dict.items()

    def to(self, device: str | torch.device) -> "ActivationCache":
        """This cache, with its activations moved to a device."""
        self._replace(lambda value: value.to(device))
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Turns torch's gradients on or off, for this thread and not for this cache alone."""
        torch.set_grad_enabled(mode)

    def remove_batch_dim(self) -> "ActivationCache":
        """This cache, without its batch axis; nothing happens if it has none.

        Raises:
            ShapeError: If it holds more than one row; nothing has been changed then.
        """
        if not self.has_batch_dim:
            return self
        for name, value in self.cache_dict.items():
            if value.shape[0] != 1:
                where = f"remove_batch_dim at {name}"
                raise ShapeError(where, "one row", f"{value.shape[0]}; take one by batch slice")
        self._replace(lambda value: value[0])
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Some) -> "ActivationCache":
        """Another cache with some of the rows; a single index drops the batch axis.

        Raises:
            ShapeError: If this one has no batch axis.
        """
        part = as_slice(batch_slice)
        if not self.has_batch_dim and part.mode != "identity":
            raise ShapeError("apply_slice_to_batch_dim", "a cache with a batch axis", "one without")
        made = ActivationCache(self.cache_dict, self.model, self.has_batch_dim, more=self._more)
        if self.has_batch_dim:
            made._replace(lambda value: part.apply(value, dim=0))
            made.has_batch_dim = part.mode != "int"
        return made

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Some = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Labelled:
        """The stream before each layer up to `layer`: `0_pre`, …, `final_post`.

        With `apply_ln` each row is scaled by the recorded norm of `layer`; after the last block
        (as from 2.18 on) each goes through the final norm itself, with its own statistics.
        """
        layer = self._layer(layer)
        stream = self._stream(pos_slice)
        written, labels = stream.accumulated(layer, incl_mid=incl_mid, mlp_input=mlp_input)
        stack = stream.stacked(written)
        if apply_ln:
            last = layer == self.model.cfg.n_layers
            stack = self.apply_ln_to_stack(
                stack,
                layer,
                mlp_input,
                pos_slice,
                has_batch_dim=self.has_batch_dim,
                recompute_ln=last,
            )
        return (stack, labels) if return_labels else stack

    def decompose_resid(  # noqa: PLR0913 - the classic signature
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Parts = "all",
        apply_ln: bool = False,
        pos_slice: Some = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Labelled:
        """What each sublayer before `layer` wrote, after the embeddings: `0_attn_out`, ….

        With mode "all" and the embeddings it sums to the stream before `layer`.

        Raises:
            OptionError: If `mode` is another.
        """
        if mode not in ("all", "mlp", "attn"):
            raise OptionError("mode", "'all', 'mlp' or 'attn'", mode)
        layer = self._layer(layer)
        stream = self._stream(pos_slice)
        written, labels = stream.sublayers(
            layer, mlp_input=mlp_input, mode=mode, incl_embeds=incl_embeds
        )
        stack = self._normed(stream.stacked(written), layer, pos_slice, apply_ln, mlp_input)
        return (stack, labels) if return_labels else stack

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Some = None,
        apply_ln: bool = False,
    ) -> Labelled:
        """What each head before `layer` wrote, `L0H0` …; the remainder is the rest."""
        layer = self._layer(layer)
        stream = self._stream(pos_slice)
        stack, labels = stream.heads(layer)
        if incl_remainder:
            stack, labels = stream.with_remainder(stack, labels, layer)
        stack = self._normed(stack, layer, pos_slice, apply_ln)
        return (stack, labels) if return_labels else stack

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Some = None,
        neuron_slice: Some = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
    ) -> Labelled:
        """What each chosen neuron before `layer` wrote, `L0N0` …, without its layer's bias.

        Takes layers × neurons times the memory of the stream.
        """
        layer = self._layer(layer)
        stream = self._stream(pos_slice)
        stack, labels = stream.neurons(layer, as_slice(neuron_slice))
        if incl_remainder:
            stack, labels = stream.with_remainder(stack, labels, layer)
        stack = self._normed(stack, layer, pos_slice, apply_ln)
        return (stack, labels) if return_labels else stack

    def get_neuron_results(
        self, layer: int, neuron_slice: Some = None, pos_slice: Some = None
    ) -> Float[Tensor, "... d_model"]:
        """What each chosen neuron of one layer wrote: `…batch pos neuron d_model`."""
        return self._stream(pos_slice).neuron_results(layer, as_slice(neuron_slice))

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Some = None,
        return_labels: bool = False,
    ) -> Labelled:
        """Heads, then neurons (or layers of them), embeddings, and all biases as one component.

        It sums to the stream before `layer`, or before its neurons with `mlp_input`.
        """
        layer = self._layer(layer)
        stack, labels = full(
            self._stream(pos_slice), layer, mlp_input=mlp_input, expand_neurons=expand_neurons
        )
        stack = self._normed(stack, layer, pos_slice, apply_ln, mlp_input)
        return (stack, labels) if return_labels else stack

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer ..."]:
        """One activation of every layer before `layer`."""
        layers = range(self._layer(layer))
        return torch.stack([self[activation_name, block, sublayer_type] for block in layers])

    def compute_head_results(self) -> None:
        """Nothing: `cache["result", layer]` is computed from z when it is read."""

    def apply_ln_to_stack(  # noqa: PLR0913 - the classic signature
        self,
        residual_stack: Stack,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Some = None,
        batch_slice: Some = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Stack:
        """The stack divided by the recorded scale of a norm, centred first where the norm centres.

        The scale is that of ln1 of `layer` (ln2 with `mlp_input`), or of the final norm; a norm's
        weight and bias are not applied, so this is what the next layer reads on folded weights.
        `batch_slice` is applied to the stack, `pos_slice` must already have been. With
        `recompute_ln` each component after the last block goes through the final norm itself.
        """
        layer = self._layer(layer)
        rows = as_slice(batch_slice)
        batched = has_batch_dim and self.has_batch_dim
        stack = rows.apply(residual_stack, dim=1) if batched else residual_stack
        if self.model.cfg.normalization_type is None:
            return stack
        if recompute_ln and layer == self.model.cfg.n_layers:
            return recomputed_norm(self.model, stack)
        scale = as_slice(pos_slice).apply(
            self[scale_of(self.model, layer, mlp_input=mlp_input)], dim=-2
        )
        scale = rows.apply(scale) if self.has_batch_dim else scale
        return frozen_norm(self.model, stack, scale, layer)

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: Some = None,
        batch_slice: Some = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component ..."]:
        """Each component's share of the logit of `tokens`, less that of `incorrect_tokens`.

        In logits, with the final norm's recorded scale. Tokens are one for all, one per row
        (for every position of it), or one per row and position. On folded weights the shares of a
        full decomposition, and the token's b_U, sum to the logit.

        Raises:
            ShapeError: If the two kinds of tokens differ in shape, or do not fit the stack.
        """
        rows = as_slice(batch_slice)
        batched = has_batch_dim and self.has_batch_dim
        stack = self.apply_ln_to_stack(
            residual_stack,
            pos_slice=pos_slice,
            batch_slice=rows,
            has_batch_dim=has_batch_dim,
        )
        return logit_attributions(
            self.model, stack, tokens, incorrect_tokens, as_slice(pos_slice), rows, batched=batched
        )

    def _layer(self, layer: int | None) -> int:
        return resolved(layer, self.model.cfg.n_layers)

    def _stream(self, pos_slice: Some) -> Stream:
        return Stream(self.model, self._read, self.cache_dict.__contains__, as_slice(pos_slice))

    def _normed(
        self,
        stack: Stack,
        layer: int,
        pos_slice: Some,
        apply_ln: bool,
        mlp_input: bool = False,
    ) -> Stack:
        if not apply_ln:
            return stack
        return self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)

    def _name(self, key: Key) -> str:
        if isinstance(key, str):
            return get_act_name(key)
        name, layer, kind = (*key, None, None)[:3]
        if isinstance(layer, int) and layer < 0:
            layer += self.model.cfg.n_layers
        return get_act_name(str(name), layer, None if kind is None else str(kind))

    def _read(self, name: str) -> Tensor:
        if name in self.cache_dict:
            return self.cache_dict[name]
        z = name.replace(_RESULT, ".attn.hook_z")
        if z != name and z in self.cache_dict:
            block = self.model.blocks[int(name.split(".")[1])]
            return head_results(self.cache_dict[z], block.attn.W_O)
        if self._more is not None:
            return self._more(name)
        last = max((int(k.split(".")[1]) for k in self.cache_dict if "blocks." in k), default=None)
        until = "no block" if last is None else f"blocks up to {last}"
        hint = f"It holds {until}; names_filter, or where the run stopped, leave out the rest."
        raise UnknownNameError("activation in this cache", name, self.cache_dict, hint)

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        """Every activation changed, those too that are only computed when they are read."""
        self.cache_dict = {name: change(value) for name, value in self.cache_dict.items()}
        more = self._more
        if more is not None:
            self._more = _after(more, change)


def _after(more: More, change: Callable[[Tensor], Tensor]) -> More:
    def changed(name: str) -> Tensor:
        return change(more(name))

    return changed
