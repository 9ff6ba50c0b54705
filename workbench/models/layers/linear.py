"""A linear map which, where it is wide, may hold its matrix a second time, as the kernel reads it.

torch hands a float32 product to a library that reorders the matrix on every call; for few tokens
that takes longer than the product. oneDNN multiplies with blocks that were ordered once.

Notable: the blocks are 192 inputs deep, as those of the library torch calls, so that sums are made
in the same order. Where that was measured (x86, AVX2, MKL), results are equal bit for bit from 4
tokens on; elsewhere they are as near to the exact product.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

DEPTH = 192  # inputs per block
WIDE = 2  # outputs per input: narrower matrices gain nothing
LEAST = 2**18  # weights: below, the calls cost more than the reading
MANY = 256  # tokens: from there on ordering costs little beside the product
_ROWS = 16  # the number of tokens for which the kernel may choose its order; any number works


@final
@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix in the kernel's order, and which tensor it was made of."""

    pointer: int
    version: int
    parts: tuple[Tensor, ...]

    def of(self, weight: Tensor) -> bool:
        """Whether they are still this tensor's, which may have been replaced or written to."""
        return (
            weight.data_ptr() == self.pointer
            and weight._version == self.version  # noqa: SLF001 - torch's own name for it
            and weight.dtype == torch.float32
        )

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The linear map of x; has no gradient."""
        first, *others = zip(x.split(DEPTH, -1), self.parts, strict=True)
        y = _multiply(*first, bias, "none", [], "")
        for part, block in others:
            y = _add(part, y, block, None, "add")
        return y

    def __deepcopy__(self, memo: dict[int, object]) -> "Blocks":
        return self


@final
class Linear(nn.Linear):
    """The linear map y = x Wᵀ + b."""

    blocks: Blocks | None = None

    @override
    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return multiply(input, self.weight, self.bias, self.blocks)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Blocks | None) -> Tensor:
    """The linear map x Wᵀ + b, by blocks where that is faster and nobody asks for a gradient."""
    many = x.numel() >= MANY * x.shape[-1]
    if blocks is None or many or torch.is_grad_enabled() or not blocks.of(weight):
        return F.linear(x, weight, bias)
    return blocks.multiply(x, bias)


def worthwhile(weight: Tensor) -> bool:
    """Whether blocks of this matrix are faster than it."""
    n_out, n_in = weight.shape
    return n_out >= WIDE * n_in and weight.numel() >= LEAST


def blocks_of(weight: Tensor) -> Blocks | None:
    """A matrix in blocks; None where this build of torch, device or dtype has no such kernel.

    Takes as much memory again.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if not torch.backends.mkldnn.is_available():
        return None
    with torch.inference_mode(mode=False), torch.no_grad():
        return Blocks(weight.data_ptr(), weight._version, tuple(_parts(weight.detach())))  # noqa: SLF001


def _parts(weight: Tensor) -> Iterator[Tensor]:
    scratch = torch.empty(len(weight) * DEPTH)  # one for all: many would leave holes in the heap
    for part in weight.split(DEPTH, 1):
        yield _reorder(scratch[: part.numel()].view(part.shape).copy_(part), _ROWS)


# Inductor, torch's compiler, calls these; they have no other names.
_mkldnn: Any = torch.ops.mkldnn
_reorder: Callable[[Tensor, int], Tensor] = _mkldnn._reorder_linear_weight  # noqa: SLF001
_multiply: Callable[..., Tensor] = _mkldnn._linear_pointwise.default  # noqa: SLF001
_add: Callable[..., Tensor] = _mkldnn._linear_pointwise.binary  # noqa: SLF001
