"""A stack's weights in the classic layout: row vectors, heads as an axis, one tensor per block.

Notable: what is shown per block are views of the stack's own tensors; what is stacked over blocks
is computed once and kept, unless the weights are being trained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar, final

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.core.errors import OptionError
from workbench.core.tap import UNTAPPED
from workbench.models.layers.attention import Attention
from workbench.models.layers.mlp import MLP, FeedForward, GatedMLP
from workbench.models.layers.norm import LayerNorm, Norm, RMSNorm
from workbench.models.transformer import PreNormBlock, Stack
from workbench.models.views.stacks import bias_of, blocks_of, words_of

Matrices = Float[Tensor, "head d_model d_head"]
Biases = Float[Tensor, "head d_head"]
Made = TypeVar("Made")


@final
class AttentionWeights:
    """The weights of one block's heads; `_W_K` and its like have one head per key-value head."""

    def __init__(self, attn: Attention) -> None:
        self._attn: Final = attn
        self._each = attn.n_heads // attn.n_groups

    @property
    def W_Q(self) -> Matrices:  # noqa: N802 - the classic's name
        """What each head's queries read."""
        return self._reads(self._attn.q)

    @property
    def _W_K(self) -> Matrices:  # noqa: N802
        return self._reads(self._attn.k)

    @property
    def _W_V(self) -> Matrices:  # noqa: N802
        return self._reads(self._attn.v)

    @property
    def W_K(self) -> Matrices:  # noqa: N802
        """What each head's keys read, repeated within a group."""
        return self._W_K.repeat_interleave(self._each, 0) if self._each > 1 else self._W_K

    @property
    def W_V(self) -> Matrices:  # noqa: N802
        """What each head's values read, repeated within a group."""
        return self._W_V.repeat_interleave(self._each, 0) if self._each > 1 else self._W_V

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:  # noqa: N802
        """What each head writes of its z."""
        weight, d = self._attn.o.weight, self._attn.d_head
        return rearrange(weight, "d_model (head d) -> head d d_model", d=d)

    @property
    def b_Q(self) -> Biases:  # noqa: N802
        """The biases of the queries; 0 where there are none."""
        return self._biases(self._attn.q)

    @property
    def _b_K(self) -> Biases:  # noqa: N802
        return self._biases(self._attn.k)

    @property
    def _b_V(self) -> Biases:  # noqa: N802
        return self._biases(self._attn.v)

    @property
    def b_K(self) -> Biases:  # noqa: N802
        """The biases of the keys, repeated within a group."""
        return self._b_K.repeat_interleave(self._each, 0) if self._each > 1 else self._b_K

    @property
    def b_V(self) -> Biases:  # noqa: N802
        """The biases of the values, repeated within a group."""
        return self._b_V.repeat_interleave(self._each, 0) if self._each > 1 else self._b_V

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:  # noqa: N802
        """What is written once for all heads."""
        return _bias(self._attn.o)

    @property
    def QK(self) -> FactoredMatrix:  # noqa: N802
        """W_Q W_Kᵀ of each head."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:  # noqa: N802
        """W_V W_O of each head."""
        return FactoredMatrix(self.W_V, self.W_O)

    def named(self) -> dict[str, Tensor]:
        """Each weight by its classic name in the block; one per key-value head where grouped."""
        key = "_" if self._each > 1 else ""
        found = {"W_Q": self.W_Q, "W_O": self.W_O, "b_Q": self.b_Q, "b_O": self.b_O}
        found |= {f"{key}W_K": self._W_K, f"{key}W_V": self._W_V}
        found |= {f"{key}b_K": self._b_K, f"{key}b_V": self._b_V}
        return {f"attn.{name}": value for name, value in found.items()}

    def _reads(self, linear: nn.Linear) -> Matrices:
        return rearrange(linear.weight, "(head d) d_model -> head d_model d", d=self._attn.d_head)

    def _biases(self, linear: nn.Linear) -> Biases:
        return rearrange(_bias(linear), "(head d) -> head d", d=self._attn.d_head)


@final
class FeedForwardWeights:
    """The weights of one block's neurons; may be called on the normalised stream."""

    def __init__(self, mlp: FeedForward) -> None:
        self._mlp: Final = mlp

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What the neurons write, each position by itself."""
        flat = x.reshape(1, -1, x.shape[-1])
        return self._mlp.feed(flat, UNTAPPED).reshape(x.shape)

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:  # noqa: N802
        """What each neuron reads; the linear half of a gated one."""
        return self._brick().up.weight.mT

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:  # noqa: N802
        """What each gate reads; None if there is none."""
        return self._mlp.gate.weight.mT if isinstance(self._mlp, GatedMLP) else None

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:  # noqa: N802
        """What each neuron writes."""
        return self._brick().down.weight.mT

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """The bias of each neuron: before the activation, or after the product of a gated one.

        Raises:
            OptionError: If a gated one has biases before its product, which the classic lacks.
        """
        mlp = self._mlp
        if not isinstance(mlp, GatedMLP):
            return _bias(self._brick().up)
        for name, linear in (("gate", mlp.gate), ("linear", mlp.up)):
            bias = bias_of(linear)
            if bias is not None and bool(bias.any()):
                raise OptionError(
                    "b_in", "read from a model whose gated neurons have no bias before the product",
                    f"a {name} bias, which the classic format has no name for",
                )  # fmt: skip
        return mlp.up.weight.new_zeros(mlp.up.weight.shape[0]) if mlp.inner is None else mlp.inner

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """What is written once for all neurons."""
        return _bias(self._brick().down)

    def _brick(self) -> MLP | GatedMLP:
        if not isinstance(self._mlp, MLP | GatedMLP):
            raise OptionError("mlp", "plain or gated", type(self._mlp).__name__)
        return self._mlp


@final
class NormWeights:
    """A norm; may be called on any tensor whose last axis is the stream."""

    def __init__(self, norm: Norm) -> None:
        self._norm: Final = norm

    @property
    def w(self) -> Float[Tensor, " d_model"] | None:
        """Its weight; None where it is folded."""
        return self._norm.weight if isinstance(self._norm, LayerNorm | RMSNorm) else None

    @property
    def b(self) -> Float[Tensor, " d_model"] | None:
        """Its bias; None where there is none."""
        return self._norm.bias if isinstance(self._norm, LayerNorm) else None

    @property
    def brick(self) -> Norm:
        """The norm itself."""
        return self._norm

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The normalised values, each by its own statistics."""
        flat = x.reshape(1, -1, x.shape[-1])
        return self._norm.normalise(flat, UNTAPPED).reshape(x.shape)


@final
@dataclass(frozen=True, eq=False)
class EmbedWeights:
    """The token embedding; may be called."""

    W_E: Float[Tensor, "d_vocab d_model"]

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The rows of W_E."""
        return self.W_E[tokens]


@final
@dataclass(frozen=True, eq=False)
class PosEmbedWeights:
    """The learned positions."""

    W_pos: Float[Tensor, "n_ctx d_model"]


@final
@dataclass(frozen=True, eq=False)
class UnembedWeights:
    """The unembedding; may be called."""

    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, " d_vocab"]  # noqa: N815 - the classic's name

    def __call__(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """The logits of what the final norm gave."""
        return residual @ self.W_U + self.b_U


@final
class BlockWeights:
    """One block's parts: `attn`, `ln1`, and where it has neurons `mlp` and `ln2`."""

    def __init__(self, block: PreNormBlock) -> None:
        self.attn: Final = AttentionWeights(block.attn)
        self.ln1, self.ln2 = NormWeights(block.ln1), NormWeights(block.ln2)
        self._mlp = block.mlp

    @property
    def mlp(self) -> FeedForwardWeights:
        """Its neurons.

        Raises:
            OptionError: If it has none.
        """
        if self._mlp is None:
            raise OptionError("blocks[...].mlp", "left out", "an attention-only model")
        return FeedForwardWeights(self._mlp)

    def named(self) -> dict[str, Tensor]:
        """Each weight by its classic name in the block."""
        found = {**_of_norm("ln1", self.ln1), **self.attn.named()}
        if self._mlp is None:
            return found
        mlp, gate = self.mlp, self.mlp.W_gate
        found |= _of_norm("ln2", self.ln2)
        found |= {"mlp.W_in": mlp.W_in, "mlp.W_out": mlp.W_out, "mlp.b_in": mlp.b_in}
        found["mlp.b_out"] = mlp.b_out
        return found if gate is None else {**found, "mlp.W_gate": gate}


@final
class ClassicWeights:
    """All weights of a stack; stacked ones have the blocks as their first axis."""

    def __init__(self, stack: Stack, *, keep: bool) -> None:
        """`keep` computes each stacked tensor once: right for weights that never change."""
        self._stack, self._keep = stack, keep
        self._made: dict[str, Tensor] = {}
        self.blocks: Final = tuple(BlockWeights(block) for block in blocks_of(stack))
        self.ln_final: Final = NormWeights(stack.ln_final)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:  # noqa: N802
        """The token embedding."""
        return self._stack.embed.tokens

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:  # noqa: N802
        """The learned positions.

        Raises:
            OptionError: If it has none.
        """
        if self._stack.embed.positions is None:
            raise OptionError("W_pos", "read from a model with learned positions", "none")
        return self._stack.embed.positions

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802
        """The unembedding."""
        return words_of(self._stack).weight.mT

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:  # noqa: N802
        """The bias of the logits."""
        unembed = words_of(self._stack)
        zeros = unembed.weight.new_zeros(unembed.weight.shape[0])
        return zeros if unembed.bias is None else unembed.bias

    def stacked(self, name: str, of: Callable[[BlockWeights], Tensor]) -> Tensor:
        """One tensor of every block, blocks first."""
        if name in self._made:
            return self._made[name]
        made = torch.stack([of(block) for block in self.blocks])
        if self._keep:
            self._made[name] = made  # a thread that comes second makes the same again
        return made

    def named(self) -> dict[str, Tensor]:
        """Every weight by its classic name; views of the stack's own tensors."""
        found: dict[str, Tensor] = {"embed.W_E": self.W_E}
        if self._stack.embed.positions is not None:
            found["pos_embed.W_pos"] = self.W_pos
        for layer, block in enumerate(self.blocks):
            found |= {f"blocks.{layer}.{name}": value for name, value in block.named().items()}
        found |= _of_norm("ln_final", self.ln_final)
        return {**found, "unembed.W_U": self.W_U, "unembed.b_U": self.b_U}


def _of_norm(name: str, norm: NormWeights) -> dict[str, Tensor]:
    parts = {f"{name}.w": norm.w, f"{name}.b": norm.b}
    return {key: value for key, value in parts.items() if value is not None}


def _bias(linear: nn.Linear) -> Tensor:
    bias = bias_of(linear)
    return linear.weight.new_zeros(linear.weight.shape[0]) if bias is None else bias


def native(name: str, value: Tensor) -> Tensor:
    """A classic weight in the layout of the stack's own tensor."""
    kind = name.rsplit(".", 1)[-1].lstrip("_")
    if kind in ("W_Q", "W_K", "W_V"):
        return rearrange(value, "head d_model d -> (head d) d_model")
    if kind == "W_O":
        return rearrange(value, "head d d_model -> d_model (head d)")
    if kind in ("b_Q", "b_K", "b_V"):
        return rearrange(value, "head d -> (head d)")
    return value.mT if kind in ("W_in", "W_gate", "W_out", "W_U") else value


def native_names(stack: Stack) -> Mapping[str, str]:
    """The stack's own names of all weights that the classic format can hold, by classic name."""
    table = {"embed.W_E": "embed.tokens", "pos_embed.W_pos": "embed.positions"}
    table |= {"unembed.W_U": "unembed.weight", "unembed.b_U": "unembed.bias"}
    table |= {"ln_final.w": "ln_final.weight", "ln_final.b": "ln_final.bias"}
    for layer, block in enumerate(blocks_of(stack)):
        here, attn = f"blocks.{layer}", block.attn
        key = "_" if attn.n_heads != attn.n_groups else ""
        for part in "QKVO":
            own = key if part in "KV" else ""
            table[f"{here}.attn.{own}W_{part}"] = f"{here}.attn.{part.lower()}.weight"
            table[f"{here}.attn.{own}b_{part}"] = f"{here}.attn.{part.lower()}.bias"
        for norm in ("ln1", "ln2"):
            table[f"{here}.{norm}.w"] = f"{here}.{norm}.weight"
            table[f"{here}.{norm}.b"] = f"{here}.{norm}.bias"
        inner = "inner" if isinstance(block.mlp, GatedMLP) else "up.bias"
        pairs = {"W_in": "up.weight", "W_out": "down.weight", "W_gate": "gate.weight"}
        pairs |= {"b_in": inner, "b_out": "down.bias"}
        table |= {f"{here}.mlp.{old}": f"{here}.mlp.{new}" for old, new in pairs.items()}
    return table
