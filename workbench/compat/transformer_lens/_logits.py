"""Logits of many cells that are computed only where a metric reads them.

Notable: a metric is any function of logits (batch pos vocab), yet most read one position. So it is
given a tensor that is not computed yet. Indexing by position computes that position, for all cells
of a batch at once; anything else it is used for computes it whole first. Its storage is one NaN, so
whatever got round that could not be taken for a number.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import Logits, Resid

Unembed = Callable[[Resid], Logits]
_SHAPE_ONLY = frozenset(
    {
        Tensor.shape.__get__,  # pyright: ignore[reportAttributeAccessIssue]
        Tensor.dtype.__get__,  # pyright: ignore[reportAttributeAccessIssue]
        Tensor.device.__get__,
        Tensor.ndim.__get__,  # pyright: ignore[reportAttributeAccessIssue]
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.__len__,
    }
)


_NUMBERS = 2**25  # of logits held at once, beside the base run's: 134 MB in float32


@final
class Pool:
    """The logits of a batch of cells, computed by position, as they are asked for.

    The first positions are the base run's; `stream` has the others, every cell's rows in turn.
    Cells are best read in order: what one asks for is computed for as many after it as fit.
    """

    def __init__(
        self,
        base: Logits,
        stream: Float[Tensor, "cell_rows later d_model"],
        unembed: Unembed,
    ) -> None:
        self._base, self._stream, self._unembed = base, stream, unembed
        self._rows, self.width = base.shape[:2]
        self._start = self.width - stream.shape[1]
        self._cells = range(0)  # those whose logits are held
        self._asked: list[int] = []  # the positions at which they are
        self._held = base[:, :0]

    def cell(self, number: int) -> "LazyLogits":
        """The logits of one cell."""
        made = self._base.new_full((), float("nan")).expand(self._base.shape)
        lazy = made.as_subclass(LazyLogits)
        lazy.pool, lazy.number = self, number
        return lazy

    def at(self, number: int, positions: Sequence[int]) -> Logits:
        """One cell's logits at some positions."""
        new = {pos for pos in positions if pos >= self._start} - set(self._asked)
        if new or (number not in self._cells and self._asked):
            self._compute(number, sorted(new.union(self._asked)))
        if not positions:
            return self._base[:, :0]
        return torch.stack([self._one(number, pos) for pos in positions], 1)

    def _compute(self, number: int, asked: list[int]) -> None:
        size = max(1, _NUMBERS // (self._rows * len(asked) * self._base.shape[-1]))
        cells = range(number, min(number + size, len(self._stream) // self._rows))
        part = self._stream[cells.start * self._rows : cells.stop * self._rows]
        self._held = self._unembed(part[:, [pos - self._start for pos in asked]])
        self._cells, self._asked = cells, asked

    def _one(self, number: int, pos: int) -> Float[Tensor, "batch d_vocab"]:
        if pos < self._start:
            return self._base[:, pos]
        first = (number - self._cells.start) * self._rows
        return self._held[first : first + self._rows, self._asked.index(pos)]


@final
class LazyLogits(Tensor):
    """One cell's logits (batch pos vocab), computed where they are read."""

    pool: Pool
    number: int

    @classmethod
    @override
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What torch calls for every use of it."""
        if func in _SHAPE_ONLY:
            return super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.__getitem__ and isinstance(args[0], LazyLogits):
            return _read(args[0], args[1])
        named = {name: _whole(value) for name, value in (kwargs or {}).items()}
        return func(*map(_whole, args), **named)


def _whole(value: Any) -> Any:
    """The same with every lazy tensor computed."""
    if isinstance(value, LazyLogits):
        return value.pool.at(value.number, range(value.pool.width))
    if isinstance(value, list | tuple):
        return type(value)(map(_whole, value))
    return value


def _read(logits: LazyLogits, key: Any) -> Tensor:
    """What an index gives, from the positions that it reads only.

    Raises:
        IndexError: If it reads a position that there is not.
    """
    parts = _three(key)
    if parts is None:
        return _whole(logits)[key]
    rows, at, words = parts
    width = logits.pool.width
    if isinstance(at, slice):
        positions = list(range(width))[at]
        return logits.pool.at(logits.number, positions)[rows, :, words]
    asked = torch.as_tensor(at)
    if bool(((asked < -width) | (asked >= width)).any()):
        raise IndexError(f"Position {asked.tolist()} of logits that have {width}.")
    few, places = (asked % width).unique(return_inverse=True)
    place = int(places) if isinstance(at, int) else places
    return logits.pool.at(logits.number, few.tolist())[rows, place, words]


def _three(key: Any) -> tuple[Any, Any, Any] | None:
    """An index with one simple part for each axis; None if it is anything else."""
    parts = list(key) if isinstance(key, tuple) else [key]
    dots = [place for place, part in enumerate(parts) if part is Ellipsis]
    missing = [slice(None)] * (3 + len(dots) - len(parts))
    if len(dots) > 1 or len(parts) - len(dots) > 3:
        return None
    whole = [*parts[: dots[0]], *missing, *parts[dots[0] + 1 :]] if dots else [*parts, *missing]
    return (whole[0], whole[1], whole[2]) if all(map(_is_simple, whole)) else None


def _is_simple(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.dtype in (torch.int64, torch.int32) and not isinstance(part, LazyLogits)
    return isinstance(part, int | slice) and not isinstance(part, bool)
