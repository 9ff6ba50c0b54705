"""The weights by their classic names: row vectors, heads as an axis, layers first where stacked."""
# ruff: noqa: FBT001, FBT002, N802 - the classic names and signatures

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.compat.transformer_lens import processing
from workbench.compat.transformer_lens.facade.state import State
from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.compat.transformer_lens.weights import (
    BlockWeights,
    EmbedWeights,
    NormWeights,
    PosEmbedWeights,
    UnembedWeights,
)


class Weights(State):
    """What a facade shows of its weights, and sums and products of them."""

    @property
    def embed(self) -> EmbedWeights:
        """The token embedding, `embed.W_E`; may be called with ids."""
        return EmbedWeights(self.W_E, self._weights.embed_ln)

    @property
    def pos_embed(self) -> PosEmbedWeights:
        """The learned positions, `pos_embed.W_pos`."""
        return PosEmbedWeights(self.W_pos)

    @property
    def unembed(self) -> UnembedWeights:
        """The unembedding, `unembed.W_U` and `unembed.b_U`; may be called with a normed stream."""
        return UnembedWeights(self.W_U, self.b_U)

    @property
    def blocks(self) -> tuple[BlockWeights, ...]:
        """The blocks, each with `attn`, `mlp`, `ln1` and `ln2`."""
        return self._weights.blocks

    @property
    def ln_final(self) -> NormWeights:
        """The final norm; may be called."""
        return self._weights.ln_final

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The token embedding."""
        return self._weights.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """The learned positions; an error where there are none."""
        return self._weights.W_pos

    @property
    def W_E_pos(self) -> Float[Tensor, "d_vocab_and_n_ctx d_model"]:
        """Token embedding and learned positions, one after the other."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return self._weights.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """The bias of the logits."""
        return self._weights.b_U

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """What queries read."""
        return self._read.stacked(lambda block: block.attn.W_Q)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """What keys read; repeated within a group."""
        return self._read.stacked(lambda block: block.attn.W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """What values read; repeated within a group."""
        return self._read.stacked(lambda block: block.attn.W_V)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """What heads write."""
        return self._read.stacked(lambda block: block.attn.W_O)

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """What neurons read."""
        return self._read.stacked(lambda block: block.mlp.W_in)

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:
        """What gates read; None where there are none."""
        if not self.cfg.gated_mlp:
            return None
        return self._read.stacked(processing.gate_of)

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """What neurons write."""
        return self._read.stacked(lambda block: block.mlp.W_out)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the queries."""
        return self._read.stacked(lambda block: block.attn.b_Q)

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the keys; repeated within a group."""
        return self._read.stacked(lambda block: block.attn.b_K)

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the values; repeated within a group."""
        return self._read.stacked(lambda block: block.attn.b_V)

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """What attention writes whatever it reads."""
        return self._read.stacked(lambda block: block.attn.b_O)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """The biases of the neurons."""
        return self._read.stacked(lambda block: block.mlp.b_in)

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """What neurons write whatever they read."""
        return self._read.stacked(lambda block: block.mlp.b_out)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head."""
        return FactoredMatrix(self.W_V, self.W_O)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """All biases written before a layer: of its attention too with `mlp_input`."""
        return processing.accumulated_bias(
            self._read.blocks,
            layer,
            self.cfg.d_model,
            mlp_input=mlp_input,
            neurons=include_mlp_biases and not self.cfg.attn_only,
        )

    def all_composition_scores(
        self, mode: Literal["Q", "K", "V"]
    ) -> Float[Tensor, "layer head other_layer other_head"]:
        """How much of each later head reads what each earlier one writes; 0 unless it is later.

        Raises:
            OptionError: If the mode is none of the three.
        """
        return processing.composition(self.QK, self.OV, mode)

    def all_head_labels(self) -> list[str]:
        """L0H0, L0H1 and so on."""
        layers, heads = range(self.cfg.n_layers), range(self.cfg.n_heads)
        return [f"L{layer}H{head}" for layer in layers for head in heads]
