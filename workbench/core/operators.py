"""Operators: pure changes of a tensor, `h <- h + strength * (T(h) - h)`, saved as data.

Notable: an operand (a vector to add, an activation to set) is broadcast from the right. Where it
spans positions, it is read at each token's *absolute* position, so the same operator means the
same in one full forward, in a decode step and under padding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType, MappingProxyType
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import (
    FormatError,
    NotReplayableError,
    OptionError,
    ShapeError,
)
from workbench.core.modes import outside_inference
from workbench.core.operands import aligned, owned, pure
from workbench.core.options import number
from workbench.core.place import Place
from workbench.core.sites import Site

Activation = Float[Tensor, "..."] | Int[Tensor, "..."]  # which experts: whole numbers
Scalars = Mapping[str, float]
Tensors = Mapping[str, Tensor]


class Operator(ABC):
    """A pure change of an activation; `strength` 0 leaves it, 1 is the whole change."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        """The changed activation, a new tensor of the same shape."""

    @abstractmethod
    def scalars(self) -> Scalars:
        """The plain numbers it was made of."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """The tensors it was made of."""

    @override
    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in vars(self).items())
        return f"{self.name}({shapes})"


@final
@dataclass(frozen=True)
class Zero(Operator):
    """Zero ablation: T(h) = 0."""

    name: ClassVar[str] = "zero"

    @override
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        return torch.zeros_like(value) if strength == 1 else value * (1 - strength)

    @override
    def scalars(self) -> Scalars:
        return {}

    @override
    def tensors(self) -> Tensors:
        return {}


@final
@dataclass(frozen=True, eq=False, repr=False)
class Set(Operator):
    """Replace by a given activation: T(h) = operand."""

    operand: Activation
    name: ClassVar[str] = "set"

    @override
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        new = aligned(self.operand, value, site, place).expand_as(value)
        return new if strength == 1 else torch.lerp(value, new, strength)

    @override
    def scalars(self) -> Scalars:
        return {}

    @override
    def tensors(self) -> Tensors:
        return {"operand": self.operand}


@final
@dataclass(frozen=True, eq=False, repr=False)
class Mean(Operator):
    """Mean ablation: T(h) = the mean of a data set, `(d)`, `(head d)` or per position."""

    operand: Activation
    name: ClassVar[str] = "mean"

    @override
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        return Set(self.operand)(value, site, place, strength)

    @override
    def scalars(self) -> Scalars:
        return {}

    @override
    def tensors(self) -> Tensors:
        return {"operand": self.operand}


@final
@dataclass(frozen=True, eq=False, repr=False)
class Add(Operator):
    """Add a vector as it is stored: T(h) = h + operand; never normalised in silence."""

    operand: Activation
    name: ClassVar[str] = "add"

    @override
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        return torch.add(value, aligned(self.operand, value, site, place), alpha=strength)

    @override
    def scalars(self) -> Scalars:
        return {}

    @override
    def tensors(self) -> Tensors:
        return {"operand": self.operand}


@final
@dataclass(frozen=True)
class Scale(Operator):
    """Multiply: T(h) = factor * h."""

    factor: float
    name: ClassVar[str] = "scale"

    @override
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        return value * (1 + strength * (self.factor - 1))

    @override
    def scalars(self) -> Scalars:
        return {"factor": self.factor}

    @override
    def tensors(self) -> Tensors:
        return {}


@final
@dataclass(frozen=True, eq=False, repr=False)
class ProjectOut(Operator):
    """Directional ablation: T(h) = h - QᵀQ(h - center), the rows of Q orthonormal."""

    basis: Float[Tensor, "rank d"]
    center: Float[Tensor, " d"]
    name: ClassVar[str] = "project_out"

    @override
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        width, basis, center = self.basis.shape[-1], self.basis.to(value), self.center.to(value)
        if site.axes[-2] == "head" and width == value.shape[-2:].numel():
            whole = value.flatten(-2)  # of all heads, as a direction has it
            return value - strength * ((whole - center) @ basis.T @ basis).view_as(value)
        if width != value.shape[-1]:
            raise ShapeError(str(site), f"vectors of {value.shape[-1]}", str(width))
        return value - strength * ((value - center) @ basis.T @ basis)

    @override
    def scalars(self) -> Scalars:
        return {}

    @override
    def tensors(self) -> Tensors:
        return {"basis": self.basis, "center": self.center}


@final
@dataclass(frozen=True, eq=False)
class Function(Operator):
    """A bare function of the activation: the escape hatch, which cannot be saved or replayed."""

    function: Callable[[Tensor], Tensor]
    name: ClassVar[str] = "function"

    @override
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        # A copy: torch does not count writes through `.data`, and they must not reach the run.
        new = pure(self.function, value.clone(), site)
        return new if strength == 1 else torch.lerp(value, new, strength)

    @override
    def scalars(self) -> Scalars:
        raise NotReplayableError("A bare function cannot be saved; use an operator of wb.ops.")

    @override
    def tensors(self) -> Tensors:
        raise NotReplayableError("A bare function cannot be saved; use an operator of wb.ops.")


def zero() -> Zero:
    """Zero ablation."""
    return Zero()


def set(value: Activation) -> Set:  # noqa: A001 - the field's name for it
    """Replace the activation by `value`, broadcast from the right, read at absolute positions.

    Masked attention scores are -inf, and may be so in `value`: they stay masked.
    """
    return Set(owned("ops.set", value, masked=True))


def mean(value: Activation) -> Mean:
    """Mean ablation by a mean you computed, say `trace[site].mean((0, 1))`."""
    return Mean(owned("ops.mean", value, masked=True))


def add(vector: Activation) -> Add:
    """Add `vector` as it is; its unit is the activation's."""
    return Add(owned("ops.add", vector))


def scale(factor: float) -> Scale:
    """Multiply by `factor`.

    Raises:
        OptionError: If it is no finite number.
    """
    return Scale(number("ops.scale", factor))


@outside_inference
def project_out(
    directions: Float[Tensor, " d"] | Float[Tensor, "rank d"],
    *,
    center: Float[Tensor, " d"] | None = None,
) -> ProjectOut:
    """Remove the span of `directions`, which are made orthonormal; 0 or `center` takes its place.

    Raises:
        ShapeError: If `directions` are no vectors, or `center` is not one of their length.
        OptionError: If the directions span nothing.
        NonFiniteError: If one is not finite.
    """
    directions = owned("ops.project_out", directions)
    if directions.ndim not in (1, 2) or not directions.numel():
        raise ShapeError("ops.project_out", "(d) or (rank d)", str(tuple(directions.shape)))
    center = None if center is None else owned("center", center)
    if center is not None and center.shape != directions.shape[-1:]:
        wanted = f"a center of shape {tuple(directions.shape[-1:])}"
        raise ShapeError("ops.project_out", wanted, str(tuple(center.shape)))
    rows = torch.atleast_2d(directions).double()
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    kept = sizes > 1e-6 * sizes.max()  # a direction nearly in the span of others is rounding noise
    if not bool(kept.any()) or float(sizes.max()) == 0:
        raise OptionError("directions", "vectors that are not all zero", tuple(rows.shape))
    middle = torch.zeros(rows.shape[-1]) if center is None else center
    return ProjectOut(basis[kept].to(directions.dtype), middle.to(directions.dtype))


def function(change: Callable[[Tensor], Tensor]) -> Function:
    """Any function of the activation; it must return a new tensor of the same shape and dtype.

    Raises:
        OptionError: If it cannot be called.
    """
    if not callable(change):
        raise OptionError("function", "callable", change)
    if isinstance(change, FunctionType) and change.__module__ == __name__:
        raise OptionError("operator", f"called: wb.ops.{change.__name__}(…)", change.__name__)
    return Function(change)


def operator_from(name: str, scalars: Scalars, tensors: Tensors) -> Operator:
    """The operator that `scalars` and `tensors` were taken from.

    Raises:
        FormatError: If there is none of that name, or its parts do not fit.
    """
    makers: Mapping[str, Callable[[], Operator]] = MappingProxyType(
        {
            "zero": Zero,
            "set": lambda: set(tensors["operand"]),
            "mean": lambda: mean(tensors["operand"]),
            "add": lambda: add(tensors["operand"]),
            "scale": lambda: scale(scalars["factor"]),
            "project_out": lambda: _stored_projection(tensors["basis"], tensors["center"]),
        }
    )
    if name not in makers:
        raise FormatError(f"No operator is called {name!r}; one of {', '.join(makers)}.")
    try:
        made = makers[name]()
    except KeyError as missing:
        raise FormatError(f"operator {name!r} lacks {missing}.") from None
    strange = sorted({*scalars, *tensors} - {*made.scalars(), *made.tensors()})
    if strange:
        raise FormatError(f"operator {name!r} has no {strange[0]!r}.")
    return made


def _stored_projection(basis: Tensor, center: Tensor) -> ProjectOut:
    """As it was saved, to the bit: an orthonormal basis made orthonormal again is another one.

    Raises:
        ShapeError: If it is no basis and center of one width.
        OptionError: If the basis is not orthonormal.
    """
    if basis.ndim != 2 or not 0 < len(basis) <= basis.shape[1] or center.shape != basis.shape[1:]:
        got = f"{tuple(basis.shape)} and {tuple(center.shape)}"
        raise ShapeError("project_out", "a basis (rank d) and a center (d)", got)
    basis, center = owned("project_out", basis), owned("project_out", center)
    gram = basis.double() @ basis.double().T
    if float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max()) > 0.05:  # bfloat16
        raise OptionError("project_out", "saved with an orthonormal basis", tuple(basis.shape))
    return ProjectOut(basis, center)
