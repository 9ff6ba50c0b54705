"""A linear map which, where it is wide, may hold its matrix a second time, as the kernel reads it.

torch hands a float32 product to a library that reorders the matrix on every call; for few tokens
that takes longer than the product. oneDNN multiplies with tiles that were ordered once.

Notable: the tiles are 192 inputs deep, as those of the library torch calls, so that sums are made
in the same order. Where that was measured (x86, AVX2, MKL), results of most passes are equal bit
for bit; those of a few tokens, and on other machines, are as near to the exact product.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from typing_extensions import override

DEPTH = 192  # inputs per tile
WIDE = 2  # outputs per input: narrower matrices gain nothing
LEAST = 2**18  # weights: below, the calls cost more than the reading
MANY = 256  # tokens: from there on ordering costs little beside the product
_ROWS = 16  # the number of tokens for which the kernel may choose its order; any number works


class Kernel(NamedTuple):
    """What oneDNN does, as torch's own compiler calls it; there are no other names for it."""

    order: Callable[[Tensor, int], Tensor]
    multiply: Callable[..., Tensor]
    add: Callable[..., Tensor]


def _kernel() -> Kernel | None:
    """The kernel, where this build of torch has it: there is none on some machines."""
    if not torch.backends.mkldnn.is_available():
        return None
    ops: Any = torch.ops.mkldnn
    product = ops._linear_pointwise  # noqa: SLF001
    return Kernel(ops._reorder_linear_weight, product.default, product.binary)  # noqa: SLF001


KERNEL = _kernel()


@final
@dataclass(frozen=True, eq=False)
class Tiles:
    """A matrix in the kernel's order, and which tensor it was made of."""

    kernel: Kernel
    source: Tensor  # kept, so that no other can come to lie where it lies
    version: int
    parts: tuple[Tensor, ...]

    def of(self, weight: Tensor) -> bool:
        """Whether they are still this tensor's, which may have been replaced or written to."""
        same = weight.data_ptr() == self.source.data_ptr() and weight.dtype == torch.float32
        return same and weight._version == self.version  # noqa: SLF001 - torch's own name for it

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The linear map of x; has no gradient."""
        first, *others = zip(x.split(DEPTH, -1), self.parts, strict=True)
        y = self.kernel.multiply(*first, bias, "none", [], "")
        for part, tile in others:
            y = self.kernel.add(part, y, tile, None, "add")
        return y

    def __deepcopy__(self, memo: dict[int, object]) -> "Tiles":
        return self

    @override
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _none, ()  # the kernel's order is this machine's own: a pickled model has none


def _none() -> None:
    return None


@final
class Linear(nn.Linear):
    """The linear map y = x Wᵀ + b."""

    tiles: Tiles | None = None

    @override
    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return multiply(input, self.weight, self.bias, self.tiles)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, tiles: Tiles | None) -> Tensor:
    """The linear map x Wᵀ + b, by tiles where that is faster and nobody asks for a gradient."""
    many = x.numel() >= MANY * x.shape[-1]
    if tiles is None or many or torch.is_grad_enabled() or _followed(x) or _followed(weight):
        return F.linear(x, weight, bias)
    return tiles.multiply(x, bias) if tiles.of(weight) else F.linear(x, weight, bias)


def _followed(x: Tensor) -> bool:
    """Whether a tangent goes with it, or a transform of torch.func: the tiles know of neither.

    Forward-mode derivatives are taken under `no_grad` too.
    """
    return _is_wrapped(x) or unpack_dual(x).tangent is not None


_C: Any = torch._C  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - torch has no public name
_is_wrapped: Callable[[Tensor], bool] = _C._functorch.is_functorch_wrapped_tensor  # noqa: SLF001


def of_its_weight(weight: Tensor, tiles: Tiles | None) -> Tiles | None:
    """The tiles if they are of this weight, else None: their memory is given back."""
    return tiles if tiles is not None and tiles.of(weight) else None


def worthwhile(weight: Tensor) -> bool:
    """Whether tiles of this matrix are faster than it."""
    n_out, n_in = weight.shape
    return n_out >= WIDE * n_in and weight.numel() >= LEAST


def tiles_of(weight: Tensor) -> Tiles | None:
    """A matrix in tiles; None where this build of torch, device or dtype has no such kernel.

    Takes as much memory again.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if KERNEL is None:
        return None
    with torch.inference_mode(mode=False), torch.no_grad():
        parts = tuple(_parts(weight.detach(), KERNEL))
        return Tiles(KERNEL, weight.detach(), weight._version, parts)  # noqa: SLF001


def _parts(weight: Tensor, kernel: Kernel) -> Iterator[Tensor]:
    scratch = torch.empty(len(weight) * DEPTH)  # one for all: many would leave holes in the heap
    for part in weight.split(DEPTH, 1):
        yield kernel.order(scratch[: part.numel()].view(part.shape).copy_(part), _ROWS)
