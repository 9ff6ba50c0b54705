"""A stack's weights in the classic layout: row vectors, heads as an axis, one tensor per block.

Notable: what is shown per block are views of the stack's own tensors (see `lending`); what is
stacked over blocks is made anew each time, as a weight may have been written to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar, final

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.compat.transformer_lens.lending import Loan
from workbench.compat.transformer_lens.native import expert_names
from workbench.compat.transformer_lens.places import Place, Shown
from workbench.core.errors import OptionError
from workbench.core.tap import UNTAPPED
from workbench.models.layers.attention import Attention
from workbench.models.layers.experts import Experts
from workbench.models.layers.mlp import MLP, FeedForward, GatedMLP
from workbench.models.layers.norm import LayerNorm, NoNorm, Norm, RMSNorm
from workbench.models.layers.sandwich import SandwichBlock
from workbench.models.transformer import PreNormBlock, Stack
from workbench.models.views.stacks import bias_of, blocks_of, embed_of, words_of

Matrices = Float[Tensor, "head d_model d_head"]
Biases = Float[Tensor, "head d_head"]
Made = TypeVar("Made")
NO_NORMS = (NoNorm(), NoNorm())


@final
class AttentionWeights(Place):
    """The weights of one block's heads; `_W_K` and its like have one head per key-value head."""

    def __init__(self, attn: Attention, name: str, shown: Shown) -> None:
        super().__init__(name, shown.find)
        self._attn: Final = attn
        self._loan = shown.loan
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
        weight, d = self._loan.own(self._attn.o, "weight"), self._attn.d_head
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
        return _bias(self._attn.o, self._loan)

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
        weight = self._loan.own(linear, "weight")
        return rearrange(weight, "(head d) d_model -> head d_model d", d=self._attn.d_head)

    def _biases(self, linear: nn.Linear) -> Biases:
        return rearrange(_bias(linear, self._loan), "(head d) -> head d", d=self._attn.d_head)


@final
class FeedForwardWeights(Place):
    """The weights of one block's neurons; may be called on the normalised stream."""

    def __init__(self, mlp: FeedForward, name: str, shown: Shown) -> None:
        super().__init__(name, shown.find)
        self._mlp: Final = mlp
        self._loan = shown.loan

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What the neurons write, each position by itself."""
        flat = x.reshape(1, -1, x.shape[-1])
        return self._mlp.feed(flat, UNTAPPED).reshape(x.shape)

    @property
    def ln(self) -> "NormWeights":
        """The norm of the neurons; without weights where there is none."""
        mlp = self._mlp
        norm = mlp.ln if isinstance(mlp, MLP) else None
        return NormWeights(norm or NoNorm(), f"{self._name}.ln", Shown(self._loan, self._find))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:  # noqa: N802
        """What each neuron reads; the linear half of a gated one."""
        return self._loan.own(self._brick().up, "weight").mT

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:  # noqa: N802
        """What each gate reads; None if there is none."""
        mlp = self._mlp
        return self._loan.own(mlp.gate, "weight").mT if isinstance(mlp, GatedMLP) else None

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:  # noqa: N802
        """What each neuron writes."""
        return self._loan.own(self._brick().down, "weight").mT

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """The bias of each neuron: before the activation, or after the product of a gated one.

        Raises:
            OptionError: If a gated one has biases before its product, which the classic lacks.
        """
        mlp = self._mlp
        if not isinstance(mlp, GatedMLP):
            return _bias(self._brick().up, self._loan)
        for name, linear in (("gate", mlp.gate), ("linear", mlp.up)):
            bias = bias_of(linear)
            if bias is not None and bool(bias.any()):
                raise OptionError(
                    "b_in", "read from a model whose gated neurons have no bias before the product",
                    f"a {name} bias, which the classic format has no name for",
                )  # fmt: skip
        if mlp.inner is None:
            return mlp.up.weight.new_zeros(mlp.up.weight.shape[0])
        return self._loan.own(mlp, "inner")

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """What is written once for all neurons."""
        return _bias(self._brick().down, self._loan)

    def of_experts(self) -> dict[str, Tensor]:
        """The weights of a mixture by their names in the block, in the classic's own layout."""
        assert isinstance(self._mlp, Experts)  # nothing else has them
        places = {old: new.removesuffix(".weight") for old, new in expert_names(self._mlp).items()}
        linears = {name: self._mlp.get_submodule(place) for name, place in places.items()}
        return {f"mlp.{n}": self._loan.own(linear, "weight") for n, linear in linears.items()}

    def _brick(self) -> MLP | GatedMLP:
        if not isinstance(self._mlp, MLP | GatedMLP):
            raise OptionError("mlp", "plain or gated", type(self._mlp).__name__)
        return self._mlp


@final
class NormWeights(Place):
    """A norm; may be called on any tensor whose last axis is the stream."""

    def __init__(self, norm: Norm, name: str, shown: Shown) -> None:
        super().__init__(name, shown.find)
        self._norm: Final = norm
        self._loan = shown.loan

    @property
    def w(self) -> Float[Tensor, " d_model"] | None:
        """Its weight; None where it is folded."""
        weighted = isinstance(self._norm, LayerNorm | RMSNorm)
        return self._loan.own(self._norm, "weight") if weighted else None

    @property
    def b(self) -> Float[Tensor, " d_model"] | None:
        """Its bias; None where there is none."""
        return self._loan.own(self._norm, "bias") if isinstance(self._norm, LayerNorm) else None

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The normalised values, each by its own statistics."""
        flat = x.reshape(1, -1, x.shape[-1])
        return self._norm.normalise(flat, UNTAPPED).reshape(x.shape)


@final
@dataclass(frozen=True, eq=False)
class EmbedWeights:
    """The token embedding; may be called."""

    W_E: Float[Tensor, "d_vocab d_model"]
    ln: NormWeights  # of what is embedded; without weights where there is none

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The rows of W_E, normalised where a norm comes after them."""
        return self.ln(self.W_E[tokens])


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
class BlockWeights(Place):
    """One block's parts: `attn`, `ln1`, and where it has neurons `mlp` and `ln2`.

    `ln1_post` and `ln2_post` have no weights where no norms follow attention and neurons. A block
    may be called on the stream before it, with the facade's hooks.
    """

    def __init__(self, block: PreNormBlock, layer: int, shown: Shown) -> None:
        here = f"blocks.{layer}"
        super().__init__(here, shown.find)
        self.attn: Final = AttentionWeights(block.attn, f"{here}.attn", shown)
        self.ln1: Final = NormWeights(block.ln1, f"{here}.ln1", shown)
        self.ln2: Final = NormWeights(block.ln2, f"{here}.ln2", shown)
        after = (block.ln1_post, block.ln2_post) if isinstance(block, SandwichBlock) else NO_NORMS
        self.ln1_post: Final = NormWeights(after[0], f"{here}.ln1_post", shown)
        self.ln2_post: Final = NormWeights(after[1], f"{here}.ln2_post", shown)
        self.q_norm: Final = NormWeights(block.attn.q_norm, f"{here}.attn.q_norm", shown)
        self.k_norm: Final = NormWeights(block.attn.k_norm, f"{here}.attn.k_norm", shown)
        self._mlp, self._layer, self._shown = block.mlp, layer, shown

    def __call__(
        self,
        resid_pre: Float[Tensor, "batch pos d_model"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream after the block; the facade's hooks act."""
        return self._shown.run(self._layer, resid_pre, attention_mask)

    @property
    def mlp(self) -> FeedForwardWeights:
        """Its neurons.

        Raises:
            OptionError: If it has none.
        """
        if self._mlp is None:
            raise OptionError("blocks[...].mlp", "left out", "an attention-only model")
        return FeedForwardWeights(self._mlp, f"blocks.{self._layer}.mlp", self._shown)

    def named(self) -> dict[str, Tensor]:
        """Each weight by its classic name in the block."""
        found = {**_of_norm("ln1", self.ln1), **self.attn.named()}
        found |= _of_norm("ln1_post", self.ln1_post)
        found |= {**_of_norm("attn.q_norm", self.q_norm), **_of_norm("attn.k_norm", self.k_norm)}
        if self._mlp is None:
            return found
        mlp, gate = self.mlp, self.mlp.W_gate  # None of experts, which have one each
        found |= {**_of_norm("ln2", self.ln2), **_of_norm("ln2_post", self.ln2_post)}
        found |= _of_norm("mlp.ln", mlp.ln)
        if isinstance(self._mlp, Experts):
            return found | mlp.of_experts()
        found |= {"mlp.W_in": mlp.W_in, "mlp.W_out": mlp.W_out, "mlp.b_in": mlp.b_in}
        found["mlp.b_out"] = mlp.b_out
        return found if gate is None else {**found, "mlp.W_gate": gate}


@final
class ClassicWeights:
    """All weights of a stack; stacked ones have the blocks as their first axis."""

    def __init__(self, stack: Stack, shown: Shown) -> None:
        """`shown.loan` says which weights are copied before they are handed out."""
        self._stack, self._loan = stack, shown.loan
        self.blocks: Final = tuple(
            BlockWeights(block, layer, shown) for layer, block in enumerate(blocks_of(stack))
        )
        self.ln_final: Final = NormWeights(stack.ln_final, "ln_final", shown)
        embedded = embed_of(stack).ln or NoNorm()
        self.embed_ln: Final = NormWeights(embedded, "embed.ln", shown)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:  # noqa: N802
        """The token embedding."""
        return self._loan.own(self._stack.embed, "tokens")

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:  # noqa: N802
        """The learned positions.

        Raises:
            OptionError: If it has none.
        """
        if self._stack.embed.positions is None:
            raise OptionError("W_pos", "read from a model with learned positions", "none")
        return self._loan.own(self._stack.embed, "positions")

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802
        """The unembedding."""
        return self._loan.own(words_of(self._stack), "weight").mT

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:  # noqa: N802
        """The bias of the logits."""
        unembed = words_of(self._stack)
        zeros = unembed.weight.new_zeros(unembed.weight.shape[0])
        return zeros if unembed.bias is None else self._loan.own(unembed, "bias")

    def stacked(self, of: Callable[[BlockWeights], Tensor]) -> Tensor:
        """One tensor of every block, blocks first."""
        return torch.stack([of(block) for block in self.blocks])

    def named(self) -> dict[str, Tensor]:
        """Every weight by its classic name; views of the stack's own tensors."""
        found: dict[str, Tensor] = {"embed.W_E": self.W_E, **_of_norm("embed.ln", self.embed_ln)}
        if self._stack.embed.positions is not None:
            found["pos_embed.W_pos"] = self.W_pos
        for layer, block in enumerate(self.blocks):
            found |= {f"blocks.{layer}.{name}": value for name, value in block.named().items()}
        found |= _of_norm("ln_final", self.ln_final)
        return {**found, "unembed.W_U": self.W_U, "unembed.b_U": self.b_U}


def _of_norm(name: str, norm: NormWeights) -> dict[str, Tensor]:
    parts = {f"{name}.w": norm.w, f"{name}.b": norm.b}
    return {key: value for key, value in parts.items() if value is not None}


def _bias(linear: nn.Linear, loan: Loan) -> Tensor:
    if bias_of(linear) is None:
        return linear.weight.new_zeros(linear.weight.shape[0])
    return loan.own(linear, "bias")
