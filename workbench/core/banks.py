"""Vectors added at one site, a row's own to each: one addition, however many plans share a batch.

Notable: what a row is given is the same product of strength and vector whether it is alone or one
of many, and a row (or a position) without one keeps its bytes, -0.0 included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.interventions import Intervention
from workbench.core.operators import Add
from workbench.core.plan import Plan
from workbench.core.protocols import Model
from workbench.core.sites import Site

Chosen = Bool[Tensor, "batch pos 1"] | None  # None: wherever there is a vector
Selected = tuple[Chosen, tuple[int, ...]]


@final
@dataclass(frozen=True, eq=False)
class Bank:
    """Additions of whole vectors whose rows differ; `indices` are their places in the plan."""

    indices: tuple[int, ...]
    vectors: Float[Tensor, "row 1 d"]  # one for all rows, or one for each
    rows: Bool[Tensor, "batch 1 1"] | None  # those that have one; None: all
    squares: tuple[float, ...]  # of the change of one token, by intervention

    def add(self, value: Tensor, chosen: Chosen) -> Tensor:
        """The activation with each row's vector added where it is `chosen`."""
        rows = len(value)  # fewer than planned where the others join a sweep's batch later
        vectors = self.vectors if len(self.vectors) <= rows else self.vectors[:rows]
        added = value + (vectors if vectors.dtype == value.dtype else vectors.to(value))
        if chosen is not None:
            return torch.where(chosen, added, value)
        return added if self.rows is None else torch.where(self.rows[:rows], added, value)


Part = int | Bank


def parts_of(
    plan: Plan, indices: Sequence[int], site: Site, model: Model, batch: int
) -> tuple[Part, ...]:
    """The interventions at a site in order, additions of neighbours with other rows as one."""
    groups: list[list[int]] = []
    for index in indices:
        joins = bool(groups) and _banked(plan[index], site, model)
        if joins and _fits(plan, groups[-1], index, site, model):
            groups[-1].append(index)
        else:
            groups.append([index])
    return tuple(
        _bank(plan, group, model, batch) if _banked(plan[group[0]], site, model) else group[0]
        for group in groups
    )


@final
@dataclass(frozen=True, eq=False)
class Constant:
    """Banks of sites where nothing else is done and every row has a vector."""

    banks: Mapping[Site, Bank]
    vectors: Mapping[Site, Tensor]
    indices: tuple[tuple[int, ...], ...]  # those of the banks, each once
    n_rows: frozenset[int]  # of their vectors


def constant_of(parts: Mapping[Site, tuple[Part, ...]], dtype: torch.dtype) -> Constant:
    """The constant additions of a plan; none in half precision, where sites differ in dtype."""
    wide = dtype in (torch.float32, torch.float64)
    alone = ((site, some[0]) for site, some in parts.items() if wide and len(some) == 1)
    banks = {site: one for site, one in alone if isinstance(one, Bank) and one.rows is None}
    return Constant(
        banks,
        {site: bank.vectors for site, bank in banks.items()},
        tuple(dict.fromkeys(bank.indices for bank in banks.values())),
        frozenset(len(bank.vectors) for bank in banks.values()),
    )


def _banked(one: Intervention, site: Site, model: Model) -> bool:
    """Whether it adds one whole vector to each token, at a constant strength."""
    if not isinstance(one.operator, Add) or one.schedule is not None or one.gate is not None:
        return False
    if (one.heads, one.neurons, one.keys) != (None, None, None):
        return False
    widths = {"d_model": model.sizes.d_model, "d_mlp": model.sizes.d_mlp}
    vector = one.operator.operand
    flat = len(site.axes) == 3 and site.axes[1] == "pos"
    return flat and vector.ndim == 1 and vector.numel() == widths.get(site.axes[2])


def _fits(plan: Plan, group: Sequence[int], index: int, site: Site, model: Model) -> bool:
    rows = plan[index].rows
    if rows is None or not _banked(plan[group[0]], site, model):
        return False
    taken = [plan[other].rows for other in group]
    return all(others is not None and not set(others) & set(rows) for others in taken)


def _bank(plan: Plan, group: Sequence[int], model: Model, batch: int) -> Bank:
    made = [_vector(plan[index], model) for index in group]
    squares = tuple(float(torch.linalg.vector_norm(one.double())) ** 2 for one in made)
    if plan[group[0]].rows is None:
        return Bank(tuple(group), made[0][None, None], None, squares)
    vectors = torch.zeros(batch, 1, len(made[0]), dtype=made[0].dtype, device=made[0].device)
    has = torch.zeros(batch, 1, 1, dtype=torch.bool, device=made[0].device)
    for index, vector in zip(group, made, strict=True):
        rows = list(plan[index].rows or ())
        vectors[rows, 0], has[rows] = vector, True
    return Bank(tuple(group), vectors, None if bool(has.all()) else has, squares)


def _vector(one: Intervention, model: Model) -> Float[Tensor, " d"]:
    assert isinstance(one.operator, Add)  # a bank holds nothing else
    wide = one.operator.operand.to(model.device, torch.float64)
    return (wide * one.size).to(model.dtype)
