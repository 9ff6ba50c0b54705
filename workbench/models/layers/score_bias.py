"""What is added to attention scores by where query and key stand, beside their product.

Notable: a bias is made once per pass, from absolute positions, for every layer that shares it; so
it means the same in a prompt, in a decode step, in chunks and under padding on either side.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor, nn
from typing_extensions import override

from workbench.models.layers.context import Bias


class ScoreBias(nn.Module, ABC):
    """A bias on scores after their scaling; whom nobody sees is masked afterwards."""

    @abstractmethod
    def of(
        self,
        queries: Int[Tensor, "row query"],
        keys: Int[Tensor, "row key"],
        dtype: torch.dtype,
    ) -> Bias:
        """The bias by absolute positions; one row where all rows stand at the same ones."""


@final
class Alibi(ScoreBias):
    """slope (key - query), one slope for each head: the further back a key, the less it counts.

    Press, Smith & Lewis 2022, arXiv:2108.12409.
    """

    def __init__(self, slopes: Sequence[float]) -> None:
        super().__init__()
        self.slopes = tuple(slopes)

    @override
    def of(
        self,
        queries: Int[Tensor, "row query"],
        keys: Int[Tensor, "row key"],
        dtype: torch.dtype,
    ) -> Bias:
        wide = torch.promote_types(dtype, torch.float32)
        distance = (keys[:, None, :] - queries[:, :, None]).to(wide)  # row query key
        slopes = torch.tensor(self.slopes, dtype=wide, device=keys.device)
        return (slopes[:, None, None] * distance[:, None]).to(dtype)


@final
class CoarseAlibi(ScoreBias):
    """slope key, rounded to bfloat16, times a scale: as Falcon computes it, in whatever dtype.

    A number for each query is all that it lacks to `Alibi`, and no softmax takes notice of that;
    but of two keys far from the first the bias may be the same.
    """

    def __init__(self, slopes: Sequence[float], scale: float) -> None:
        super().__init__()
        self.slopes, self.scale = tuple(slopes), scale

    @override
    def of(
        self,
        queries: Int[Tensor, "row query"],
        keys: Int[Tensor, "row key"],
        dtype: torch.dtype,
    ) -> Bias:
        slopes = torch.tensor(self.slopes, dtype=torch.bfloat16, device=keys.device)
        coarse = slopes[:, None] * keys[:, None, :]  # row head key
        shape = (-1, -1, queries.shape[1], -1)
        return (coarse.to(dtype) * self.scale)[:, :, None, :].expand(shape)


def halving_slopes(n_heads: int) -> tuple[float, ...]:
    """ALiBi's slopes as BLOOM and Falcon have them: 2^(-8/n), 2^(-16/n), … for a power of two n.

    Of other counts, those of the power below come first, then every other one of the power above.
    """
    below: int = 2 ** int(math.log2(n_heads))
    first = [2.0 ** (-8 * head / below) for head in range(1, below + 1)]
    between = [2.0 ** (-8 * head / (2 * below)) for head in range(1, 2 * below, 2)]
    return (*first, *between)[:n_heads]
