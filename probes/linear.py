"""Linear probes: what every method that ends in weights gives.

Notable: weights act on rows as they are in the model, never on standardised ones, so a probe's
direction is a direction of the activation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from probes.method import Kind, Probe, checked_rows
from workbench.core.direction import Direction
from workbench.core.errors import OptionError
from workbench.core.options import index, text
from workbench.core.provenance import Provenance
from workbench.core.result import Check
from workbench.core.sites import Site


@final
@dataclass(frozen=True, eq=False)
class Arrows:
    """One vector per margin and its sizes along the rows, in the activation's unit."""

    vector: Float[Tensor, "column d"]
    gap: Float[Tensor, " column"]  # from the other classes' mean to the class's own
    sigma: Float[Tensor, " column"]  # standard deviation within a class


@final
@dataclass(frozen=True, eq=False)
class LinearProbe(Probe):
    """Margins x @ weightᵀ + bias: one of class 1 against 0, or one for each of many classes."""

    weight: Float[Tensor, "column d"]
    bias: Float[Tensor, " column"]
    arrows: Mapping[Kind, Arrows]
    norm: float  # mean norm of a row
    n_classes: int
    inner_accuracy: float
    checks: tuple[Check, ...]
    method: str
    source: str

    @override
    def score(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row class"]:
        margins = checked_rows(x, self.weight.shape[1]).to(self.weight) @ self.weight.T + self.bias
        return scores(margins)

    @override
    def direction(
        self,
        site: Site | str,
        *,
        kind: Kind = "filter",
        of: int | None = None,
        made_by: Provenance | None = None,
        label: str = "",
    ) -> Direction:
        if text("kind", kind) not in self.arrows:
            raise OptionError("kind", f"one of {', '.join(self.arrows)}", kind)
        column, sign = self._column(of)
        arrows = self.arrows[kind]
        return Direction(
            site=Site.parse(str(site)),
            vector=(sign * arrows.vector[column]).float(),
            gap=float(arrows.gap[column]),
            sigma=float(arrows.sigma[column]),
            norm=self.norm,
            unit="activation",
            checks=self.checks,
            provenance=made_by or self._unknown_origin(),
            label=label,
        )

    def _column(self, of: int | None) -> tuple[int, int]:
        """The margin that is about a class, and whether it points towards it or away.

        Raises:
            OptionError: If there is no such class, or none is named of many.
        """
        many = self.n_classes > 2
        of = None if of is None else index("of", of)
        if of not in range(self.n_classes) and (many or of is not None):
            raise OptionError("of", f"a class from 0 to {self.n_classes - 1}", of)
        if many:
            return int(of or 0), 1
        return 0, -1 if of == 0 else 1

    def _unknown_origin(self) -> Provenance:
        dtype = str(self.weight.dtype).removeprefix("torch.")
        return Provenance(self.method, self.source, model="", fingerprint="", dtype=dtype, data="")


@final
@dataclass(frozen=True, eq=False)
class Fit:
    """Weights of one or more label columns, as a method found them."""

    weight: Float[Tensor, "column margin d"]
    bias: Float[Tensor, "column margin"]
    inner_accuracy: float
    checks: Sequence[tuple[Check, ...]]  # for each column


def scores(margins: Float[Tensor, "... margin"]) -> Float[Tensor, "... class"]:
    """A score per class: margins are those of class 1 against 0, or already one per class."""
    if margins.shape[-1] > 1:
        return margins
    return torch.cat([torch.zeros_like(margins), margins], dim=-1)


def linear_probes(
    x: Float[Tensor, "row d"],
    columns: Int[Tensor, "column row"],
    fit: Fit,
    *,
    method: str,
    source: str,
) -> tuple[LinearProbe, ...]:
    """Probes with what it takes to use them as directions; six products with the rows for all."""
    n_classes = int(columns.max()) + 1
    member = one_hot(columns, n_classes).to(x)  # column row class
    centred = x - x.mean(0)
    filters = fit.weight.flatten(0, 1)  # (column margin) d
    read = centred @ filters.T
    patterns = (read.T @ centred) / read.square().sum(0).clamp(min=_TINY)[:, None]
    arrows: dict[Kind, Arrows] = {
        "filter": _arrows(centred, filters, member),
        "pattern": _arrows(centred, patterns, member),
    }
    norm, n_margins = float(torch.linalg.vector_norm(x, dim=1).mean()), fit.weight.shape[1]
    return tuple(
        LinearProbe(
            weight=fit.weight[i],
            bias=fit.bias[i],
            arrows={
                kind: _part(arrows[kind], slice(i * n_margins, (i + 1) * n_margins))
                for kind in arrows
            },
            norm=norm,
            n_classes=n_classes,
            inner_accuracy=fit.inner_accuracy,
            checks=checks,
            method=method,
            source=source,
        )
        for i, checks in enumerate(fit.checks)
    )


_TINY = torch.finfo(torch.double).tiny


def _arrows(
    centred: Float[Tensor, "row d"],
    vectors: Float[Tensor, "margins d"],
    member: Float[Tensor, "column row class"],
) -> Arrows:
    """Vectors with their sizes; `margins` are those of each label column in turn."""
    length = torch.linalg.vector_norm(vectors, dim=1).clamp(min=_TINY)
    along = centred @ vectors.T / length
    along = rearrange(along, "row (column margin) -> column row margin", column=len(member))
    sizes = member.sum(1)[..., None]  # column class 1
    means = einsum(member, along, "column row label, column row margin -> column label margin")
    means = means / sizes
    own = einsum(member, means, "column row label, column label margin -> column row margin")
    squares = (along - own).square().sum(1)  # column margin
    sigma = (squares / (len(centred) - member.shape[2])).sqrt()
    return Arrows(vectors, _gaps(means, sizes).flatten(), sigma.flatten())


def _gaps(
    means: Float[Tensor, "column class margin"], sizes: Float[Tensor, "column class 1"]
) -> Float[Tensor, "column margin"]:
    """A class's own mean minus that of all others; of class 1 alone where there are two."""
    total = means * sizes
    rest = (total.sum(1, keepdim=True) - total) / (sizes.sum(1, keepdim=True) - sizes)
    apart = means - rest
    return apart[:, 1] if means.shape[1] == 2 else apart.diagonal(dim1=1, dim2=2)


def _part(arrows: Arrows, where: slice) -> Arrows:
    return Arrows(arrows.vector[where], arrows.gap[where], arrows.sigma[where])
