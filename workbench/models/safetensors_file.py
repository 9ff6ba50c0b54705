"""One safetensors file, memory-mapped: nothing is read until a tensor is used.

After every weight was touched the process is larger by the weights (1.01 times), all of it pages
shared with the file, none of it copies; `release` gives them back, and the next touch reads them
again. The map is private: a write into a tensor would stay in this process, and leaves the file
alone.

Notable: the header is checked before anything is mapped, so that a cut-off download is an error
that names both sizes. The format is mapped here and not by its library, which cannot give pages
back: what has been checked and rearranged while loading would stay in memory twice.
"""

import json
import mmap
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import WeightsError

MAX_HEADER = 100_000_000  # bytes; the format's own limit
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


@final
@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the data, which begin at `offset`."""

    dtype: str
    shape: tuple[int, ...]
    start: int


@final
class MappedTensors(Mapping[str, Tensor]):
    """The tensors of one safetensors file by name, as views of the mapped file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset, self._entries = read_header(file)
        try:
            with safe_open(file, framework="pt", device="cpu"):  # which checks all of the header
                pass
        except (SafetensorError, OSError) as error:
            raise WeightsError(damage(file, str(error))) from None
        with file.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    @override
    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        if entry.dtype not in DTYPES:
            raise WeightsError(f"{self._file}: {name} is {entry.dtype}, which torch cannot hold.")
        dtype, n = DTYPES[entry.dtype], prod(entry.shape)
        if n == 0:
            return torch.empty(entry.shape, dtype=dtype)
        at = self._offset + entry.start
        return torch.frombuffer(self._map, dtype=dtype, count=n, offset=at).view(entry.shape)

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @override
    def __len__(self) -> int:
        return len(self._entries)

    def release(self) -> None:
        """Gives the memory of all that was read back; whoever reads on reads the file again.

        Only for tensors nobody has written into: that would be lost.
        """
        if sys.platform == "linux":  # elsewhere the system takes them when it needs to
            self._map.madvise(mmap.MADV_DONTNEED)


def tensor_names(file: Path) -> tuple[str, ...]:
    """The names in a safetensors file whose header fits its size.

    Raises:
        WeightsError: If the file is missing, cut off or damaged.
    """
    return tuple(read_header(file)[1])


def read_header(file: Path) -> tuple[int, Mapping[str, Entry]]:
    """Where the data begin, and what they are; the header must fit the file's size.

    Raises:
        WeightsError: If the file is missing, cut off or damaged.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                expected = f"{length + 8:,} bytes or more"
                raise WeightsError(
                    f"{file}: its first bytes announce {expected}, the file has {size:,}. "
                    "It is cut off or no safetensors file; pull or download it again."
                )
            header = stream.read(length)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error}.") from None
    return 8 + length, _checked(file, size - 8 - length, header)


def _checked(file: Path, n_data: int, header: bytes) -> Mapping[str, Entry]:
    try:
        data: object = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(damage(file, f"the header is not JSON: {error}")) from None
    if not isinstance(data, dict):
        raise WeightsError(damage(file, "the header is not a table"))
    entries = cast("dict[str, Any]", data)
    entries.pop("__metadata__", None)
    found = {name: _entry(file, name, entry) for name, entry in entries.items()}
    end = max((end for _, end in found.values()), default=0)
    if end != n_data:
        before = file.stat().st_size - n_data
        raise WeightsError(
            f"{file}: its header expects {before + end:,} bytes, the file has {before + n_data:,}. "
            "It is cut off or damaged; pull or download it again."
        )
    return {name: entry for name, (entry, _) in found.items()}


def _entry(file: Path, name: str, entry: object) -> tuple[Entry, int]:
    """What an entry says, and where its data end.

    Raises:
        WeightsError: If it contradicts itself.
    """
    table = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
    sizes, extent = _counts(table.get("shape")), _counts(table.get("data_offsets"))
    dtype = table.get("dtype")
    if sizes is None or extent is None or len(extent) != 2 or not isinstance(dtype, str):
        raise WeightsError(damage(file, f"{name}: its entry is no dtype, shape and extent"))
    n_bits = (extent[1] - extent[0]) * 8
    if n_bits < 0 or (dtype in BITS and prod(sizes) * BITS[dtype] != n_bits):
        raise WeightsError(
            damage(file, f"{name}: {dtype} {sizes} does not fit into {n_bits // 8} bytes")
        )
    return Entry(dtype, tuple(sizes), extent[0]), extent[1]


def _counts(values: object) -> list[int] | None:
    """A list of whole numbers from 0, or None where there is something else."""
    if not isinstance(values, list):
        return None
    listed = cast("list[object]", values)
    counts = [value for value in listed if type(value) is int and value >= 0]
    return counts if len(counts) == len(listed) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        message = "a name stands there twice"
        raise ValueError(message)
    return table


def damage(file: Path, why: str) -> str:
    """What to say of weights that contradict themselves."""
    return f"{file} is damaged ({why}); pull or download it again."
