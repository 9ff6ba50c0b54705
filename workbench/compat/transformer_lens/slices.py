"""A part of one axis: a position, a range, or a list of them, as the classic caches take it."""

from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError

Array: TypeAlias = npt.NDArray[Any]
SliceInput: TypeAlias = (
    int | np.integer[Any] | tuple[int | None, ...] | list[int] | Tensor | Array | slice | None
)


@final
class Slice:
    """One index (drops the axis), a tuple (k,), (k, m) or (k, m, n) as in `slice`, or several.

    A list, tensor or array gathers, or masks where it holds truth values; None keeps everything.

    Raises:
        OptionError: If it is none of these.
    """

    def __init__(self, input_slice: SliceInput = None) -> None:
        self.slice, self.mode = _read(input_slice)

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This part of one axis of a tensor."""
        parts: list[Any] = [slice(None)] * tensor.ndim
        parts[dim] = self.slice
        return tensor[tuple(parts)]

    def indices(self, max_ctx: int | None = None) -> Array:
        """The indices it chooses of an axis of length `max_ctx`.

        Raises:
            OptionError: If `max_ctx` is left out and this is not a single index.
        """
        if isinstance(self.slice, int):
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None:
            raise OptionError("max_ctx", "given, unless the slice is a single index", max_ctx)
        return np.arange(max_ctx, dtype=np.int64)[self.slice]

    @classmethod
    def unwrap(cls, slice_input: "Slice | SliceInput") -> "Slice":
        """A Slice as it is, and anything else as one; a single index keeps its axis."""
        if isinstance(slice_input, Slice):
            return slice_input
        made = Slice(slice_input)
        return Slice([made.slice]) if isinstance(made.slice, int) else made

    @override
    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode} "


def as_slice(given: Slice | SliceInput) -> Slice:
    """A Slice as it is, and anything else as one; a single index drops its axis."""
    return given if isinstance(given, Slice) else Slice(given)


def to_numpy(tensor: Tensor | Array | list[Any] | tuple[Any, ...] | float | int | str) -> Array:
    """An array of a tensor (off the graph and the device), an array, a list or one value.

    Half precision is widened where NumPy lacks it.
    """
    if isinstance(tensor, Tensor):
        value = tensor.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(tensor)


def _read(given: SliceInput) -> tuple[int | slice | Array, str]:
    if given is None:
        return slice(None), "identity"
    if isinstance(given, slice):
        return given, "slice"
    if isinstance(given, tuple) and 1 <= len(given) <= 3:
        return slice(*given), "slice"
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return int(given), "int"
    if isinstance(given, list | Tensor | np.ndarray):
        array = to_numpy(given)
        if not array.size:
            array = array.astype(np.int64)
        if array.dtype.kind in "iub":
            return (int(array), "int") if array.ndim == 0 else (array, "array")
    allowed = "an index, a tuple of up to three bounds, a list of indices, or None"
    raise OptionError("the slice", allowed, given)
