"""A learned bias on scores for each head and each bucket of distances, shared by all layers."""

import math
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor, nn
from typing_extensions import override

from workbench.models.layers.context import Bias
from workbench.models.layers.score_bias import ScoreBias


@final
class BucketedBias(ScoreBias):
    """T5's: distances have buckets of their own up to half, then ever wider ones to `farthest`.

    A quarter where it looks both ways: keys behind and ahead then have half of the buckets each.
    Raffel et al. 2020, arXiv:1910.10683.
    """

    def __init__(self, n_buckets: int, farthest: int, n_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_buckets, n_heads))
        self.n_buckets, self.farthest, self.causal = n_buckets, farthest, causal

    @override
    def of(
        self,
        queries: Int[Tensor, "row query"],
        keys: Int[Tensor, "row key"],
        dtype: torch.dtype,
    ) -> Bias:
        found = self.weight[self._buckets(keys[:, None, :] - queries[:, :, None])]
        return found.permute(0, 3, 1, 2).to(dtype)  # row head query key

    def _buckets(self, ahead: Int[Tensor, "row query key"]) -> Int[Tensor, "row query key"]:
        if self.causal:
            return self._by_distance((-ahead).clamp(min=0), self.n_buckets)
        half = self.n_buckets // 2
        return (ahead > 0).long() * half + self._by_distance(ahead.abs(), half)

    def _by_distance(
        self, distance: Int[Tensor, "row query key"], n_buckets: int
    ) -> Int[Tensor, "row query key"]:
        near = n_buckets // 2
        ratio = torch.log(distance.float() / near) / math.log(self.farthest / near)
        far = (near + (ratio * (n_buckets - near)).long()).clamp(max=n_buckets - 1)
        return torch.where(distance < near, distance, far)
