"""Files written whole or not at all, and read with typed errors."""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from workbench.core.errors import FormatError


def write_bytes(file: Path, content: bytes) -> None:
    """Writes beside `file` and moves the result into place: a reader never sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's: its files are their owner's alone, and stay so once moved into place.
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Writes readable JSON, without NaN, which JSON does not have."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(file, text.encode() + b"\n")


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file; views are copied, so that each tensor stands alone."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(file, save(plain, dict(metadata) if metadata else None))  # of {} it makes no JSON


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that no file can have is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def folder_or_file(path: Path) -> bool:
    """Whether there is either; a name that no file can have is none."""
    try:
        return path.exists()
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder as lasting as the files; where the system has it."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_text(file: Path) -> str:
    """Reads UTF-8 text.

    Raises:
        FormatError: If the file is missing or not text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FormatError(f"{file} does not exist.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise FormatError(f"{file} cannot be read: {error}.") from None
