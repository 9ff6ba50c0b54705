"""The header of a GGUF file, walked and checked before anything trusts it.

Notable: every number is checked against the size of the file, so a cut-off or made-up file is a
typed error at once, and not a crash, or hours, inside a library.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import final

from workbench.core.errors import WeightsError

VERSIONS = (2, 3)
MAX_AXES = 8
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32

Scalar = str | int | float | bool


@final
@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies, and how it is packed."""

    name: str
    shape: tuple[int, ...]  # fastest axis first, as GGUF has it
    packing: int  # ggml's number of the quantisation
    offset: int  # bytes, from the start of the data


@final
@dataclass(frozen=True)
class Header:
    """The metadata that is one value each, and the table of tensors."""

    metadata: Mapping[str, Scalar]  # arrays (the vocabulary) are left out
    tensors: tuple[TensorEntry, ...]

    def text(self, key: str) -> str | None:
        """A text of the metadata."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """A whole number of the metadata."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) else None


def read_header(file: Path) -> Header:
    """The header of a GGUF file all of whose tensors lie within it.

    Raises:
        WeightsError: If it is no GGUF file, is cut off, or its header contradicts itself.
    """
    size = file.stat().st_size
    if size < 24:
        raise WeightsError(
            f"{file} is {size} bytes long; a GGUF file begins with 24. Get it again."
        )
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as blob:
        try:
            header, start = _Walker(file, blob).header()
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise WeightsError(
                f"{file}: the header does not fit into the file's {size:,} bytes ({error}); "
                "it is cut off or damaged. Download it again."
            ) from None
    _check_tensors(file, size, header, start)
    return header


class _Walker:
    """A position in the file, moved by what is read."""

    def __init__(self, file: Path, blob: mmap.mmap) -> None:
        self.file, self.blob, self.pos = file, blob, 0

    def header(self) -> tuple[Header, int]:
        magic = bytes(self.blob[:4])
        self.pos = 4
        version = self.number("I")
        if magic != b"GGUF" or version not in VERSIONS:
            raise WeightsError(
                f"{self.file}: expected a GGUF file of version 2 or 3, got "
                f"{magic!r}, version {version}. Is it another format, or an error page?"
            )
        n_tensors, n_values = self.number("Q"), self.number("Q")
        metadata = dict(self.values(n_values))
        tensors = tuple(self.tensor() for _ in range(n_tensors))
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise WeightsError(f"{self.file}: the alignment is {alignment!r}; the file is damaged.")
        return Header(metadata, tensors), -(-self.pos // alignment) * alignment

    def number(self, code: str) -> int:
        value = self.value(code)
        return value if isinstance(value, int) else 0  # floats are never asked for here

    def value(self, code: str) -> int | float | bool:
        (value,) = struct.unpack_from(f"<{code}", self.blob, self.pos)
        self.pos += struct.calcsize(f"<{code}")
        return value

    def bytes(self) -> bytes:
        start = self.pos + 8
        self.skip(self.number("Q"))
        return self.blob[start : self.pos]

    def skip(self, length: int) -> None:
        end = self.pos + length
        if end > len(self.blob):
            message = f"{length:,} bytes announced at {self.pos:,}"
            raise struct.error(message)
        self.pos = end

    def values(self, count: int) -> Iterator[tuple[str, Scalar]]:
        for _ in range(count):
            key, kind = self.bytes().decode(), self.number("I")
            if kind == ARRAY:
                self.skip_array()
            else:
                yield key, self.scalar(kind)

    def scalar(self, kind: int) -> Scalar:
        if kind == STRING:
            return self.bytes().decode(errors="replace")
        return self.value(self.code(kind))

    def code(self, kind: int) -> str:
        if kind not in SCALARS:
            raise WeightsError(f"{self.file}: a value of unknown type {kind}; the file is damaged.")
        return SCALARS[kind]

    def skip_array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            for _ in range(count):
                self.bytes()
            return
        self.skip(count * struct.calcsize(f"<{self.code(kind)}"))

    def tensor(self) -> TensorEntry:
        name, n_axes = self.bytes().decode(), self.number("I")
        if n_axes > MAX_AXES:
            raise WeightsError(f"{self.file}: {name} has {n_axes} axes; the file is damaged.")
        shape = tuple(self.number("Q") for _ in range(n_axes))
        return TensorEntry(name, shape, self.number("I"), self.number("Q"))


def _check_tensors(file: Path, size: int, header: Header, start: int) -> None:
    from gguf.constants import GGML_QUANT_SIZES

    packings = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    unknown = sorted({t.packing for t in header.tensors} - packings.keys())
    if unknown:
        raise WeightsError(f"{file}: tensors are packed in unknown ways {unknown}; update gguf.")
    if not header.tensors:
        raise WeightsError(f"{file} holds no tensors; it is a vocabulary, not a model.")
    ends = {
        tensor.name: start + tensor.offset + _n_bytes(tensor.shape, *packings[tensor.packing])
        for tensor in header.tensors
    }
    last = max(ends, key=ends.__getitem__)
    if ends[last] > size:
        raise WeightsError(
            f"{file} is cut off: {last} ends at byte {ends[last]:,}, the file has {size:,}. "
            "Download it again."
        )
    if len(ends) != len(header.tensors):
        raise WeightsError(f"{file}: a tensor's name stands there twice; the file is damaged.")


def _n_bytes(shape: tuple[int, ...], block: int, block_bytes: int) -> int:
    return -(-prod(shape) // block) * block_bytes
