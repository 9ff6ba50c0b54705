"""Disentangled attention: scores by what stands where, relative to what reads it.

He, Liu, Gao & Chen 2021, arXiv:2006.03654, as DeBERTa-v2 and v3 have it: to a query's product with
a key come its product with the embedding of their distance, and the key's with that.
Notable: distances are of columns, and far ones share an embedding, by the logarithm.
"""

from dataclasses import dataclass
from typing import final

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.core.tap import UNTAPPED
from workbench.models.layers.context import Bias
from workbench.models.layers.norm import Norm

HeadsFirst = Float[Tensor, "batch head pos d_head"]


@final
@dataclass(frozen=True)
class Distances:
    """Distances from -span to span - 1; with `buckets`, far ones up to `longest` share one."""

    span: int
    longest: int
    buckets: bool

    def between(self, queries: int, keys: int, like: Tensor) -> Int[Tensor, "query key"]:
        """Which embedding is that of each distance from key to query."""
        device = like.device
        apart = torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)
        far = self._bucket(apart) if self.buckets else apart
        return (far + self.span).clamp(0, 2 * self.span - 1)

    def _bucket(self, apart: Int[Tensor, "query key"]) -> Int[Tensor, "query key"]:
        half = self.span // 2
        size = apart.abs().clamp(min=half).float()  # in float32, as the models were trained
        steps = torch.log(size / half) / torch.log(torch.tensor((self.longest - 1) / half))
        logarithm = torch.ceil(steps * (half - 1)) + half
        return torch.where(apart.abs() <= half, apart, (logarithm * apart.sign()).long())


@final
class Disentangled(nn.Module):
    """What is added to the scores of queries and keys, before their softmax.

    The embeddings of distances are one table for all layers, normalised where the model has it so.
    `key` and `query` project them, or, where that is shared, the very maps of the content do.
    """

    def __init__(  # noqa: PLR0913 - the choices of the brick
        self,
        d_model: int,
        width: int,
        distances: Distances,
        norm: Norm,
        *,
        scale: float,
        to_position: bool,
        to_content: bool,
    ) -> None:
        super().__init__()
        self.distances, self.norm, self.scale = distances, norm, scale
        self.embeddings = nn.Parameter(torch.empty(2 * distances.span, d_model))
        self.key = nn.Linear(d_model, width) if to_position else None
        self.query = nn.Linear(d_model, width) if to_content else None

    def bias(self, q: HeadsFirst, k: HeadsFirst) -> Bias:
        """By query and key, for each head."""
        table = self.norm.normalise(self.embeddings[None], UNTAPPED)[0]
        near = self.distances.between(q.shape[2], k.shape[2], q)
        total = q.new_zeros(*q.shape[:3], k.shape[2])
        if self.key is not None:
            along = self._along(q, self.key(table))  # batch head query distance
            total = total + along.gather(-1, near.expand(*along.shape[:2], -1, -1))
        if self.query is not None:
            along = self._along(k, self.query(table))  # batch head key distance
            turned = near.T.expand(*along.shape[:2], -1, -1)
            total = total + along.gather(-1, turned).transpose(-1, -2)
        return total * self.scale

    def _along(self, x: HeadsFirst, projected: Float[Tensor, "distance width"]) -> Tensor:
        by_head = projected.unflatten(-1, (x.shape[1], -1))
        return einsum(x, by_head, "batch head pos d, distance head d -> batch head pos distance")
