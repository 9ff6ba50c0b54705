"""Linear maps which, where they are wide, may hold their matrix again, as the kernel reads it.

torch hands a float32 product to a library that reorders the matrix on every call; for few tokens
that takes longer than the product. oneDNN multiplies with tiles that were ordered once.

Notable: the tiles are 192 inputs deep, as those of the library torch calls, so that sums are made
in the same order. Where that was measured (x86, AVX2, MKL), results of most passes are equal bit
for bit; those of a few tokens, and on other machines, are as near to the exact product. Whole
tiles take one call each, and are faster still; their sums are rounded somewhat more.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
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


class Source(NamedTuple):
    """A tensor that tiles were made of, as it was."""

    weight: Tensor  # kept, so that no other can come to lie where it lies
    version: int

    def now(self, weight: Tensor) -> bool:
        """Whether it is still this tensor, which may have been replaced or written to."""
        same = weight.data_ptr() == self.weight.data_ptr() and weight.dtype == torch.float32
        return same and weight._version == self.version  # noqa: SLF001 - torch's own name for it


@final
@dataclass(frozen=True, eq=False)
class Tiles:
    """A matrix in the kernel's order, or several as one, and which tensors it was made of."""

    kernel: Kernel
    sources: tuple[Source, ...]
    depth: int  # inputs per part
    parts: tuple[Tensor, ...]

    def of(self, *weights: Tensor) -> bool:
        """Whether they are still these tensors'."""
        if len(weights) != len(self.sources):
            return False
        return all(source.now(w) for source, w in zip(self.sources, weights, strict=True))

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The linear map of x; has no gradient."""
        first, *others = zip(x.split(self.depth, -1), self.parts, strict=True)
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


class Tiled(nn.Module, ABC):
    """A part of a model that multiplies with tiles of its matrices where it has them."""

    tiles: Tiles | None = None

    @abstractmethod
    def matrices(self) -> tuple[Tensor, ...]:
        """What its tiles are made of, one below the other; none where they would be of no use."""

    def ready(self, x: Tensor) -> Tiles | None:
        """Its tiles, where they are faster for `x` and nobody asks for a gradient."""
        tiles = self.tiles
        if tiles is None or torch.is_grad_enabled():
            return None
        if len(tiles.parts) > 1 and x.numel() >= MANY * x.shape[-1]:
            return None
        matrices = self.matrices()
        followed = _followed(x) or any(map(_followed, matrices))
        return tiles if not followed and tiles.of(*matrices) else None

    def rearrange(self, *, whole: bool = False) -> None:
        """Makes its tiles, where they are worth their while; only while a model is loaded.

        If `whole`, they are as deep as the matrix: one call each, and another order of sums.
        """
        matrices = self.matrices()
        wanted = bool(matrices) and worthwhile(*matrices, whole=whole)
        self.tiles = tiles_of(*matrices, whole=whole) if wanted else None

    def forget(self) -> None:
        """Gives back tiles that are no longer of its matrices."""
        if self.tiles is not None and not self.tiles.of(*self.matrices()):
            self.tiles = None


@final
class Linear(nn.Linear, Tiled):
    """The linear map y = x Wᵀ + b."""

    @override
    def matrices(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    @override
    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        tiles = self.ready(input)
        if tiles is None:
            return F.linear(input, self.weight, self.bias)
        return tiles.multiply(input, self.bias)


def worthwhile(*weights: Tensor, whole: bool = False) -> bool:
    """Whether tiles of these matrices, as one, are faster than they are."""
    n_out, n_in = sum(map(len, weights)), weights[0].shape[1]
    return n_out * n_in >= LEAST and (whole or n_out >= WIDE * n_in)


def _followed(x: Tensor) -> bool:
    """Whether a tangent goes with it, or a transform of torch.func: the tiles know of neither.

    Forward-mode derivatives are taken under `no_grad` too.
    """
    return _is_wrapped(x) or unpack_dual(x).tangent is not None


_C: Any = torch._C  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - torch has no public name
_is_wrapped: Callable[[Tensor], bool] = _C._functorch.is_functorch_wrapped_tensor  # noqa: SLF001


def tiles_of(*weights: Tensor, whole: bool = False) -> Tiles | None:
    """Matrices in tiles, as one; None where this build of torch, device or dtype has no kernel.

    Takes as much memory again.
    """
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in weights):
        return None
    if KERNEL is None:
        return None
    depth = weights[0].shape[1] if whole else DEPTH
    with torch.inference_mode(mode=False), torch.no_grad():
        plain = tuple(weight.detach() for weight in weights)
        sources = tuple(Source(w, v._version) for w, v in zip(plain, weights, strict=True))  # noqa: SLF001
        return Tiles(KERNEL, sources, depth, tuple(_parts(plain, depth, KERNEL)))


def _parts(weights: Sequence[Tensor], depth: int, kernel: Kernel) -> Iterator[Tensor]:
    n_out = sum(map(len, weights))
    scratch = torch.empty(n_out * depth)  # one for all: many would leave holes in the heap
    for parts in zip(*(weight.split(depth, 1) for weight in weights), strict=True):
        whole = scratch[: n_out * parts[0].shape[1]].view(n_out, -1)
        yield kernel.order(torch.cat(parts, out=whole), _ROWS)
