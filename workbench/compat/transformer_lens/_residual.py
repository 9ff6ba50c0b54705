"""The residual stream as a sum: what embeddings, heads, neurons and layers wrote into it.

Notable: nothing here stores anything; a stack is components first, `component …batch pos d_model`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.compat.transformer_lens._protocols import CachedModel
from workbench.compat.transformer_lens.slices import Slice
from workbench.core.errors import OptionError

Stack = Float[Tensor, "component ... d_model"]
Written = tuple[list[Tensor], list[str]]  # components of equal shape, and their labels
Parts = Literal["all", "mlp", "attn"]


@final
@dataclass(frozen=True, eq=False)
class Stream:
    """Where the stream's parts are read: `read` gives an activation by its full name.

    Every method returns the positions of `pos`, with labels in the order of the components.
    """

    model: CachedModel
    read: Callable[[str], Tensor]
    has: Callable[[str], bool]
    pos: Slice

    def accumulated(self, layer: int, *, incl_mid: bool, mlp_input: bool) -> Written:
        """The stream before each layer up to `layer`, and before its neurons where asked."""
        n_layers, names, labels = self.model.cfg.n_layers, list[str](), list[str]()
        for block in range(min(layer + 1, n_layers)):
            names.append(f"blocks.{block}.hook_resid_pre")
            labels.append(f"{block}_pre")
            if mlp_input if block == layer else incl_mid:
                names.append(f"blocks.{block}.hook_resid_mid")
                labels.append(f"{block}_mid")
        if layer == n_layers:
            names.append(f"blocks.{n_layers - 1}.hook_resid_post")
            labels.append("final_post")
        return [self._at(name) for name in names], labels

    def sublayers(
        self, layer: int, *, mlp_input: bool, mode: Parts, incl_embeds: bool = True
    ) -> Written:
        """What the embeddings and each sublayer before `layer` wrote."""
        attention = mode != "mlp"
        neurons = mode != "attn" and not self.model.cfg.attn_only
        written, labels = self.embeddings() if incl_embeds else ([], [])
        for block in range(layer):
            if attention:
                written.append(self._at(f"blocks.{block}.hook_attn_out"))
                labels.append(f"{block}_attn_out")
            if neurons:
                written.append(self._at(f"blocks.{block}.hook_mlp_out"))
                labels.append(f"{block}_mlp_out")
        if mlp_input and attention:
            written.append(self._at(f"blocks.{layer}.hook_attn_out"))
            labels.append(f"{layer}_attn_out")
        return written, labels

    def embeddings(self) -> Written:
        """What the embeddings wrote; shortformer's positions never enter the stream."""
        kinds = ["embed"]
        if self.model.cfg.positional_embedding_type != "shortformer":
            kinds.append("pos_embed")
        found = [kind for kind in kinds if self.has(f"hook_{kind}")]
        return [self._at(f"hook_{kind}") for kind in found], found

    def heads(self, layer: int) -> tuple[Stack, list[str]]:
        """What each head before `layer` wrote; without its layer's bias.

        Raises:
            OptionError: If a norm follows what is written.
        """
        self._check_plain()
        results = [
            rearrange(self._head_results(block), "... head d_model -> head ... d_model")
            for block in range(layer)
        ]
        heads = range(self.model.cfg.n_heads)
        return self.joined(results), [
            f"L{block}H{head}" for block in range(layer) for head in heads
        ]

    def neurons(self, layer: int, chosen: Slice) -> tuple[Stack, list[str]]:
        """What each chosen neuron before `layer` wrote; without its layer's bias.

        Raises:
            OptionError: If a norm follows what is written.
        """
        self._check_plain()
        kept = Slice([chosen.slice]) if isinstance(chosen.slice, int) else chosen
        results = [
            rearrange(self.neuron_results(block, kept), "... neuron d_model -> neuron ... d_model")
            for block in range(layer)
        ]
        width = self.model.cfg.d_mlp
        numbers = kept.indices(width).tolist() if layer else []
        return self.joined(results), [f"L{block}N{n}" for block in range(layer) for n in numbers]

    def neuron_results(self, layer: int, chosen: Slice) -> Float[Tensor, "... d_model"]:
        """What each chosen neuron of one layer wrote: its activation times its row of W_out."""
        acts = self.pos.apply(self.read(f"blocks.{layer}.mlp.hook_post"), dim=-2)
        acts = chosen.apply(acts, dim=-1)
        return acts[..., None] * chosen.apply(self.model.blocks[layer].mlp.W_out, dim=0)

    def with_remainder(
        self, stack: Stack, labels: list[str], layer: int
    ) -> tuple[Float[Tensor, "one_more ... d_model"], list[str]]:
        """The stack, and what it leaves of the stream before `layer`."""
        name = f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
        rest = self._at(name) - stack.sum(0)
        return torch.cat([stack, rest[None]]), [*labels, "remainder"]

    def stacked(self, written: Iterable[Tensor]) -> Stack:
        """Components as one stack; an empty one keeps the shape of the stream."""
        return self.joined(one[None] for one in written)

    def joined(self, stacks: Iterable[Tensor]) -> Stack:
        """Stacks as one."""
        parts = list(stacks)
        return torch.cat(parts) if parts else self._stream()[None][:0]

    def _check_plain(self) -> None:
        """Refuses parts of a sum that do not sum to what is written.

        Raises:
            OptionError: If a norm follows heads and neurons.
        """
        if self.model.cfg.use_normalization_before_and_after:
            allowed = "one whose heads and neurons write to the stream as they are"
            raise OptionError("model", allowed, "one where a norm follows them")

    def _head_results(self, layer: int) -> Float[Tensor, "... head d_model"]:
        name = f"blocks.{layer}.attn.hook_result"
        if self.has(name):
            return self.pos.apply(self.read(name), dim=-3)
        z = self.pos.apply(self.read(f"blocks.{layer}.attn.hook_z"), dim=-3)
        return head_results(z, self.model.blocks[layer].attn.W_O)

    def _stream(self) -> Tensor:
        """Any tensor of the stream's shape."""
        embedded = "hook_embed"
        return self._at(embedded if self.has(embedded) else "blocks.0.hook_resid_pre")

    def _at(self, name: str) -> Tensor:
        return self.pos.apply(self.read(name), dim=-2)


def head_results(
    z: Float[Tensor, "... head d_head"], w_o: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "... head d_model"]:
    """What each head writes of its z; without the bias."""
    return einsum(z, w_o.to(z), "... head d_head, head d_head d_model -> ... head d_model")


def full(
    stream: Stream, layer: int, *, mlp_input: bool, expand_neurons: bool
) -> tuple[Stack, list[str]]:
    """The stream before `layer` as heads, neurons or layers of them, embeddings and one bias."""
    heads, labels = stream.heads(layer + int(mlp_input))
    parts = [heads]
    if not stream.model.cfg.attn_only and layer > 0:
        if expand_neurons:
            neurons, names = stream.neurons(layer, Slice())
            parts.append(neurons)
        else:
            written, names = stream.sublayers(layer, mlp_input=False, mode="mlp", incl_embeds=False)
            parts.append(stream.stacked(written))
        labels = [*labels, *names]
    embedded, kinds = stream.embeddings()
    bias = stream.model.accumulated_bias(
        layer, mlp_input=mlp_input, include_mlp_biases=expand_neurons
    )
    everywhere = bias.to(heads).expand((1, *heads.shape[1:]))
    whole = stream.joined([*parts, stream.stacked(embedded), everywhere])
    return whole, [*labels, *kinds, "bias"]


def resolved(layer: int | None, n_layers: int) -> int:
    """A classic layer argument: None and -1 mean after the last block.

    Raises:
        OptionError: If there is no such layer.
    """
    if layer is None or layer == -1:
        return n_layers
    if not 0 <= layer <= n_layers:
        raise OptionError("layer", f"0…{n_layers}, or None or -1 for {n_layers}", layer)
    return layer
