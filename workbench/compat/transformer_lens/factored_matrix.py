"""A matrix kept as a product A B: its singular values, eigenvalues and norm, never formed.

Notable: W_Q W_Kᵀ and W_V W_O are d_model × d_model of rank d_head, so everything here works on the
thin factors. Leading dimensions (layer, head) broadcast, as in torch.
"""

from functools import cached_property
from types import EllipsisType
from typing import Any, TypeAlias, final, overload

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError, ShapeError

Index: TypeAlias = int | slice | EllipsisType | Tensor | list[int] | None
_ALL = slice(None)


@final
class FactoredMatrix:
    """The matrix A B, of shape (… ldim rdim), through its middle dimension mdim.

    Raises:
        ShapeError: If the factors do not meet in the middle, or their leading dimensions do not
            broadcast.
    """

    def __init__(
        self,
        A: Float[Tensor, "*left ldim mdim"],  # noqa: N803 - the classic names
        B: Float[Tensor, "*right mdim_of_b rdim"],  # noqa: N803
    ) -> None:
        shapes = f"{tuple(A.shape)} and {tuple(B.shape)}"
        if A.shape[-1] != B.shape[-2]:
            raise ShapeError("FactoredMatrix", "factors (… ldim mdim) and (… mdim rdim)", shapes)
        try:
            leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except RuntimeError:
            alike = "leading dimensions that broadcast"
            raise ShapeError("FactoredMatrix", alike, shapes) from None
        self.ldim, self.mdim, self.rdim = A.shape[-2], A.shape[-1], B.shape[-1]
        self.A = A.broadcast_to((*leading, self.ldim, self.mdim))
        self.B = B.broadcast_to((*leading, self.mdim, self.rdim))
        self.shape = torch.Size((*leading, self.ldim, self.rdim))
        self.has_leading_dims = len(leading) > 0

    @property
    def ndim(self) -> int:
        """How many dimensions the product has."""
        return len(self.shape)

    @property
    def pair(self) -> tuple[Float[Tensor, "*lead ldim mdim"], Float[Tensor, "*lead mdim rdim"]]:
        """Both factors."""
        return self.A, self.B

    @property
    def AB(self) -> Float[Tensor, "*lead ldim rdim"]:  # noqa: N802 - the classic name
        """The product, formed."""
        return self.A @ self.B

    @property
    def BA(self) -> Float[Tensor, "*lead mdim mdim"]:  # noqa: N802 - the classic name
        """The factors the other way round, which has the product's eigenvalues but for zeros.

        Raises:
            ShapeError: If the product is not square.
        """
        if self.ldim != self.rdim:
            raise ShapeError("BA", "a square product, ldim = rdim", f"{tuple(self.shape)}")
        return self.B @ self.A

    @property
    def T(self) -> "FactoredMatrix":  # noqa: N802 - the classic name
        """The transpose, factored."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        u_a, s_a, vh_a = torch.linalg.svd(_wide(self.A), full_matrices=False)
        u_b, s_b, vh_b = torch.linalg.svd(_wide(self.B), full_matrices=False)
        middle = s_a[..., :, None] * (vh_a @ u_b) * s_b[..., None, :]
        u, s, vh = torch.linalg.svd(middle, full_matrices=False)
        return u_a @ u, s, vh_b.mT @ vh.mT

    def svd(
        self,
    ) -> tuple[
        Float[Tensor, "*lead ldim rank"], Float[Tensor, "*lead rank"], Float[Tensor, "*lead rdim r"]
    ]:
        """U, S and V with A B = U diag(S) Vᵀ; three thin decompositions, kept once made.

        Beware: the third is V, not its transpose, as it always was. Half precision is widened.
        """
        return self._parts

    @property
    def U(self) -> Float[Tensor, "*lead ldim rank"]:  # noqa: N802 - the classic name
        """The left singular vectors, as columns."""
        return self._parts[0]

    @property
    def S(self) -> Float[Tensor, "*lead rank"]:  # noqa: N802 - the classic name
        """The singular values, falling."""
        return self._parts[1]

    @property
    def V(self) -> Float[Tensor, "*lead rdim rank"]:  # noqa: N802 - the classic name
        """The right singular vectors, as columns."""
        return self._parts[2]

    @property
    def Vh(self) -> Float[Tensor, "*lead rdim rank"]:  # noqa: N802 - the classic name
        """The same as `V`, under the name that 2.x gave it: not its transpose."""
        return self._parts[2]

    @property
    def eigenvalues(self) -> Complex[Tensor, "*lead mdim"]:
        """The eigenvalues of a square product, but for those that are zero by rank.

        Raises:
            ShapeError: If the product is not square.
        """
        return torch.linalg.eigvals(_wide(self.BA))

    def norm(self) -> Float[Tensor, "*lead"]:
        """The Frobenius norm."""
        return self.S.square().sum(-1).sqrt()

    def make_even(self) -> "FactoredMatrix":
        """The same product with orthogonal factors that share the singular values evenly."""
        half = self.S.sqrt()
        return FactoredMatrix(self.U * half[..., None, :], half[..., :, None] * self.V.mT)

    def collapse_l(self) -> Float[Tensor, "*lead rank rdim"]:
        """S Vᵀ: the product without its orthogonal left side, of equal norm."""
        return self.S[..., :, None] * self.V.mT

    def collapse_r(self) -> Float[Tensor, "*lead ldim rank"]:
        """U S: the product without its orthogonal right side, of equal norm."""
        return self.U * self.S[..., None, :]

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """With a new leading dimension at `k`."""
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def get_corner(self, k: int = 3) -> Float[Tensor, "..."]:
        """The first `k` entries along every dimension, formed."""
        corner = (slice(k),) * self.ndim
        return self[corner].AB

    @overload
    def __matmul__(self, other: "FactoredMatrix") -> "FactoredMatrix": ...
    @overload
    def __matmul__(self, other: Tensor) -> Any: ...
    def __matmul__(self, other: "Tensor | FactoredMatrix") -> "Tensor | FactoredMatrix":
        """Times a matrix or a factored one: factored again; times a vector: a vector."""
        if isinstance(other, FactoredMatrix):
            return self._times(other.A)._times(other.B)
        if other.ndim < 2:
            return (self.A @ (self.B @ other[:, None]))[..., 0]
        return self._times(other)

    def __rmatmul__(self, other: Tensor) -> Any:
        """A matrix times this: factored again; a vector times it: a vector."""
        if other.ndim < 2:
            return ((other[None] @ self.A) @ self.B)[..., 0, :]
        _meet(tuple(other.shape), tuple(self.shape))
        if self.ldim > self.mdim:
            return FactoredMatrix(other @ self.A, self.B)
        return FactoredMatrix(other, self.AB)

    def __mul__(self, scalar: int | float | Tensor) -> "FactoredMatrix":
        """Every entry times one number.

        Raises:
            ShapeError: If it is a tensor of several; `@` multiplies matrices.
        """
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise ShapeError("FactoredMatrix *", "one number (@ multiplies matrices)", _of(scalar))
        factor = scalar.reshape(()) if isinstance(scalar, Tensor) else scalar
        return FactoredMatrix(self.A * factor, self.B)

    def __rmul__(self, scalar: int | float | Tensor) -> "FactoredMatrix":
        """Every entry times one number."""
        return self * scalar

    def __getitem__(self, idx: "Index | tuple[Index, ...]") -> "FactoredMatrix":
        """Leading dimensions first, then rows, then columns; one row or column stays an axis.

        Raises:
            OptionError: If it indexes more dimensions than there are.
        """
        leading, rows, columns = _split(idx if isinstance(idx, tuple) else (idx,), self.ndim)
        left, right = self.A[(*leading, _ALL, _ALL)], self.B[(*leading, _ALL, _ALL)]
        return FactoredMatrix(left[..., rows, :], right[..., columns])

    @override
    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({tuple(self.shape)}), Hidden Dim({self.mdim})"

    def _times(self, other: Tensor) -> "FactoredMatrix":
        """The product with a matrix, kept at the smaller middle dimension."""
        _meet(tuple(self.shape), tuple(other.shape))
        if self.rdim > self.mdim:
            return FactoredMatrix(self.A, self.B @ other)
        return FactoredMatrix(self.AB, other)


def _wide(x: Tensor) -> Tensor:
    """In a dtype that decompositions have."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _meet(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    if left[-1] != right[-2]:
        raise ShapeError("FactoredMatrix @", f"a right matrix of {left[-1]} rows", f"{right}")


def _of(x: Tensor) -> str:
    return f"shape {tuple(x.shape)}"


def _split(
    parts: tuple[Index, ...], ndim: int
) -> tuple[tuple[Index, ...], slice | Tensor | list[int], slice | Tensor | list[int]]:
    """An index as one of the leading dimensions, one of rows and one of columns.

    Raises:
        OptionError: If it is too long, or a mask lies across them.
    """
    whole = _without_ellipsis(parts, ndim)
    used = sum(map(_axes_of, whole))
    if used > ndim:
        raise OptionError("the index", f"at most {ndim} dimensions long", list(parts))
    whole = (*whole, *([_ALL] * (ndim - used)))
    leading, rows, columns = whole[:-2], _kept(whole[-2]), _kept(whole[-1])
    if sum(map(_axes_of, leading)) != ndim - 2:
        raise OptionError("the index", "such that rows and columns have one part each", list(parts))
    return leading, rows, columns


def _without_ellipsis(parts: tuple[Index, ...], ndim: int) -> tuple[Index, ...]:
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if not dots:
        return parts
    if len(dots) > 1:
        raise OptionError("the index", "one with a single ellipsis", list(parts))
    missing = ndim - sum(map(_axes_of, parts))
    return (*parts[: dots[0]], *([_ALL] * missing), *parts[dots[0] + 1 :])


def _axes_of(part: Index) -> int:
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else 1


def _kept(part: Index) -> slice | Tensor | list[int]:
    """An index of rows or columns that keeps their axis.

    Raises:
        OptionError: If it is none.
    """
    if isinstance(part, slice | list):
        return part
    if isinstance(part, Tensor):
        return part.reshape(-1)
    if isinstance(part, int):
        return [part]
    raise OptionError("the index", "one of leading dimensions where it adds axes", part)
