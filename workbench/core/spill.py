"""Recorded tensors in memory-mapped files: traces longer than the memory.

Notable: each tensor is a safetensors file of its own, written whole and then mapped, so the system
reads and drops its pages as it needs memory. The files stay until the caller removes them, and
must stay as long as the trace is read.
"""

from pathlib import Path
from typing import final

from safetensors import safe_open
from torch import Tensor

from workbench.core.errors import OptionError, StorageError
from workbench.core.store import write_tensors
from workbench.core.tap import Keep


@final
class Spill:
    """Keeps tensors in a folder; give it to whatever keeps tensors under a name."""

    def __init__(self, folder: str | Path) -> None:
        """Makes the folder.

        Raises:
            OptionError: If it holds tensors already, which another trace may be reading.
            StorageError: If it cannot be made.
        """
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            found = sorted(self._folder.glob("*.safetensors"))
        except OSError as error:
            raise StorageError(f"{folder} cannot be made: {error}. Name another folder.") from None
        if found:
            raise OptionError("spill", f"an empty folder, without {found[0].name}", str(folder))

    def part(self, number: int) -> Keep:
        """Keeps the tensors of one part of a run, each as a file of its own."""
        return lambda name, value: self(f"{number}.{name}", value)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The same values, mapped from a file.

        Raises:
            StorageError: If the disk is full or cannot be written to.
        """
        file = self._folder / f"{name}.safetensors"
        try:
            write_tensors(file, {name: value})
        except OSError as error:
            raise StorageError(f"{file} cannot be written: {error}. Free some space.") from None
        with safe_open(file, framework="pt", device="cpu") as stored:
            return stored.get_tensor(name)
