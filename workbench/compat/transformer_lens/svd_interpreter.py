"""What a matrix writes or reads, as directions of the vocabulary: its singular vectors through W_U.

Source: Beren Millidge & Sid Black 2022, "The singular value decompositions of transformer weight
matrices are highly interpretable". Beware: the sign of a singular vector is arbitrary.
"""

from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.compat.transformer_lens._protocols import SvdModel
from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.core.errors import OptionError
from workbench.core.options import count, index

VectorType: TypeAlias = Literal["OV", "w_in", "w_out"]
VECTOR_TYPES: tuple[VectorType, ...] = ("OV", "w_in", "w_out")


@final
class SVDInterpreter:
    """The right singular vectors of a model's matrices, through its unembedding."""

    def __init__(self, model: SvdModel) -> None:
        self.model, self.cfg = model, model.cfg

    def get_singular_vectors(
        self,
        vector_type: VectorType,
        layer_index: int,
        num_vectors: int = 10,
        head_index: int | None = None,
    ) -> Float[Tensor, "d_vocab 1 vector"]:
        """The leading vectors of one matrix, in logits.

        "OV" is W_V W_O of a head (what it writes), "w_out" that of the neurons; "w_in" is W_inᵀ,
        times the weight of the norm before it where that is not folded (what the neurons read).

        Raises:
            OptionError: If there is no such layer or head, "OV" comes without one, or the block
                has no single such matrix.
        """
        if vector_type not in VECTOR_TYPES:
            raise OptionError("vector_type", f"one of {VECTOR_TYPES}", vector_type)
        if not 0 <= index("layer_index", layer_index) < self.cfg.n_layers:
            raise OptionError("layer_index", f"0…{self.cfg.n_layers - 1}", layer_index)
        weights = dict(self.model.state_dict())
        unembed = weights["unembed.W_U"].detach()
        with torch.no_grad():
            vectors = self._right(weights, vector_type, layer_index, head_index)
            leading = vectors[:, : count("num_vectors", num_vectors)]
            return (unembed.to(leading).mT @ leading)[:, None]

    def _right(
        self, weights: dict[str, Tensor], kind: VectorType, layer: int, head: int | None
    ) -> Float[Tensor, "d_model vector"]:
        """Right singular vectors as columns, the largest first.

        Raises:
            OptionError: If the block has no such matrix.
        """
        if kind == "OV":
            return self._head(weights, layer, head).V
        name = f"blocks.{layer}.mlp.{'W_in' if kind == 'w_in' else 'W_out'}"
        if name not in weights:
            allowed = "of a block with one such matrix (experts have several)"
            raise OptionError("vector_type", allowed, kind)
        matrix = weights[name]
        if kind == "w_in":
            norm = weights.get(f"blocks.{layer}.ln2.w")
            matrix = matrix.mT if norm is None else matrix.mT * norm
        return torch.linalg.svd(matrix.float(), full_matrices=False).Vh.mT

    def _head(self, weights: dict[str, Tensor], layer: int, head: int | None) -> FactoredMatrix:
        n_heads = self.cfg.n_heads
        if head is None or not 0 <= index("head_index", head) < n_heads:
            raise OptionError("head_index", f"0…{n_heads - 1}, one head for 'OV'", head)
        at = f"blocks.{layer}.attn"
        grouped = f"{at}._W_V" in weights
        values = weights[f"{at}._W_V" if grouped else f"{at}.W_V"]
        group = head * len(values) // n_heads
        return FactoredMatrix(values[group], weights[f"{at}.W_O"][head])
