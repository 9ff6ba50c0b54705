"""Rows standardised and rotated into the eigenbasis of their covariance, and the way back.

Notable: a ridge penalty does not notice a rotation, so weights found there are the same weights;
but the Gram matrix is diagonal there, which is what makes the solver fast.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Basis:
    """Rows in their own coordinates: z = ((x - mean) / spread) @ rotation, in float64."""

    z: Float[Tensor, "row k"]
    scale: Float[Tensor, " k"]  # the diagonal of zᵀz
    mean: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]
    rotation: Float[Tensor, "d k"]

    def raw(
        self, weight: Float[Tensor, "problem column k"], bias: Float[Tensor, "problem column"]
    ) -> tuple[Float[Tensor, "problem column d"], Float[Tensor, "problem column"]]:
        """Weights and biases that act on the rows as they were: w / spread, b - w·mean."""
        weight = weight @ self.rotation.T / self.spread
        return weight, bias - weight @ self.mean


def basis(x: Float[Tensor, "row d"]) -> Basis:
    """The standardised eigenbasis of some rows, without the directions they do not vary in.

    Of rows that are all equal nothing is left: `z` has no columns, and weights there are empty.
    Costs one Gram matrix, of the rows or of the coordinates, whichever are fewer.
    """
    x = x.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    # A constant coordinate has a spread of rounding errors; it tells nothing and gets no weight.
    constant = spread <= torch.finfo(x.dtype).eps * len(x) * mean.abs()
    spread = torch.where(constant, torch.ones_like(spread), spread)
    standard = torch.where(constant, torch.zeros_like(mean), (x - mean) / spread)
    if x.shape[0] < x.shape[1]:
        values, vectors = torch.linalg.eigh(standard @ standard.T)
        kept = _kept(values, max(x.shape))
        rotation = standard.T @ (vectors[:, kept] / values[kept].sqrt())
    else:
        values, vectors = torch.linalg.eigh(standard.T @ standard)
        kept = _kept(values, max(x.shape))
        rotation = vectors[:, kept]
    rotation = torch.where(constant[:, None], torch.zeros_like(rotation), rotation)
    return Basis(standard @ rotation, values[kept], mean, spread, rotation)


def _kept(values: Tensor, size: int) -> Tensor:
    return values > size * torch.finfo(values.dtype).eps * values.amax()
