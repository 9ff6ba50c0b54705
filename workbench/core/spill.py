"""Recorded tensors in memory-mapped files: traces longer than the memory.

Notable: each tensor is a safetensors file of its own, written whole and then mapped, so the system
reads and drops its pages as it needs memory. The files stay until the caller removes them, and
must stay as long as the trace is read. The index is written last, when the run has ended as it
should: a folder with one is whole, and `workbench.core.spilled` reads it in another process.
"""

import hashlib
import uuid
from pathlib import Path
from typing import final

from safetensors import safe_open
from torch import Tensor

from workbench.core.buckets import Part
from workbench.core.data import Batch
from workbench.core.errors import OptionError, StorageError
from workbench.core.provenance import package_version
from workbench.core.replay import kept_streams, stream_name
from workbench.core.request import Request
from workbench.core.store import write_json, write_tensors
from workbench.core.tap import Keep

FORMAT, VERSION = "workbench.trace", 1
INDEX, BATCH = "trace.json", "batch.safetensors"


@final
class Spill:
    """Keeps tensors in a folder; give it to whatever keeps tensors under a name."""

    def __init__(self, folder: str | Path) -> None:
        """Makes the folder.

        Raises:
            OptionError: If something is in it, perhaps tensors which another trace is reading.
            StorageError: If it cannot be made.
        """
        self._folder, self._run = Path(folder), uuid.uuid4().hex
        self._tensors: dict[str, dict[str, object]] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            found = sorted(self._folder.iterdir())
        except OSError as error:
            raise StorageError(f"{folder} cannot be made: {error}. Name another folder.") from None
        if found:
            raise OptionError("spill", f"an empty folder, without {found[0].name}", str(folder))

    def part(self, number: int) -> Keep:
        """Keeps the tensors of one part of a run, each as a file of its own."""
        return lambda name, value: self(part_name(name, number), value)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The same values, mapped from a file.

        Raises:
            StorageError: If the disk is full or cannot be written to.
        """
        file = self._folder / f"{name}.safetensors"
        self._write(file, {name: value})
        self._tensors[name] = {"dtype": dtype_name(value), "shape": list(value.shape)}
        with safe_open(file, framework="pt", device="cpu") as stored:
            return stored.get_tensor(name)

    def finish(self, asked: Request, parts: tuple[Part, ...]) -> None:
        """Writes what the folder holds, once all of it is there.

        Raises:
            StorageError: If the disk is full or cannot be written to.
        """
        model, batch = asked.model, self._folder / BATCH
        self._write(batch, batch_tensors(asked.batch))
        index = {
            "format": FORMAT,
            "version": VERSION,
            "workbench": package_version(),
            "run": self._run,
            "model": model.name,
            "fingerprint": model.fingerprint,
            "plan": [str(one) for one in asked.program.plan],
            "parts": [list(part.bucket.rows) for part in parts] or None,
            "sites": _sites(asked),
            "tensors": self._tensors,
            "batch": hashlib.sha256(batch.read_bytes()).hexdigest(),
        }
        try:
            write_json(self._folder / INDEX, index)
        except OSError as error:
            raise StorageError(_unwritten(self._folder / INDEX, error)) from None

    def _write(self, file: Path, tensors: dict[str, Tensor]) -> None:
        try:
            write_tensors(file, tensors, {"run": self._run})
        except OSError as error:
            raise StorageError(_unwritten(file, error)) from None


def batch_tensors(batch: Batch) -> dict[str, Tensor]:
    """The tensors a batch is made of, by the names of its fields."""
    return {name: part for name, part in _fields(batch).items() if part is not None}


def part_name(name: str, number: int | None) -> str:
    """What a tensor is called in files, of one part of the run or of the whole."""
    return name if number is None else f"{number}.{name}"


def dtype_name(value: Tensor) -> str:
    """A dtype as a word."""
    return str(value.dtype).removeprefix("torch.")


def _fields(batch: Batch) -> dict[str, Tensor | None]:
    return {
        "tokens": batch.tokens,
        "real": batch.real,
        "start": batch.start,
        "prompt": batch.prompt,
        "said": batch.said,
        "seen": batch.seen,
        "types": batch.types,
        "asked": batch.asked,
    }


def _sites(asked: Request) -> dict[str, str]:
    """What each site is called in files; of a lazy run those that are streams."""
    if asked.lazy:
        streams = kept_streams(asked.sites, asked.program)
        return {str(site): stream_name(layer) for site, layer in streams.items()}
    return {str(site): str(site) for site in asked.sites}


def _unwritten(file: Path, error: OSError) -> str:
    return f"{file} cannot be written: {error}. Free some space."
