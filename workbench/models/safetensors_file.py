"""One safetensors file, memory-mapped: nothing is read until a tensor is used.

Measured (SmolLM2-135M in float32, 513 MiB, Linux): opening it and making all 272 tensors takes
12 ms and 17 MiB; after every weight was touched the process is 518 MiB larger (1.01 times the
weights), all of it pages shared with the file, none of it copies. The map is private: a write into
a tensor would stay in this process, and leaves the file alone.

Notable: the header is checked here before the library maps the file, so that a cut-off download is
an error that names both sizes.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, cast, final

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


@final
class MappedTensors(Mapping[str, Tensor]):
    """The tensors of one safetensors file by name, as views of the mapped file."""

    def __init__(self, file: Path) -> None:
        self._names = tensor_names(file)
        try:
            self._opened: Any = safe_open(file, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise WeightsError(damage(file, str(error))) from None
        self._file = file

    @override
    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            return self._opened.get_tensor(name)
        except SafetensorError as error:
            raise WeightsError(damage(self._file, f"{name}: {error}")) from None

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @override
    def __len__(self) -> int:
        return len(self._names)


def tensor_names(file: Path) -> tuple[str, ...]:
    """The names in a safetensors file whose header fits its size.

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
    return _checked(file, size - 8 - length, header)


def _checked(file: Path, n_data: int, header: bytes) -> tuple[str, ...]:
    try:
        data: object = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(damage(file, f"the header is not JSON: {error}")) from None
    if not isinstance(data, dict):
        raise WeightsError(damage(file, "the header is not a table"))
    entries = cast("dict[str, Any]", data)
    entries.pop("__metadata__", None)
    end = max((_end(file, name, entry) for name, entry in entries.items()), default=0)
    if end != n_data:
        before = file.stat().st_size - n_data
        raise WeightsError(
            f"{file}: its header expects {before + end:,} bytes, the file has {before + n_data:,}. "
            "It is cut off or damaged; pull or download it again."
        )
    return tuple(entries)


def _end(file: Path, name: str, entry: object) -> int:
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
    return extent[1]


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
