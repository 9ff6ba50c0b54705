"""The small JSON files of a model folder, read with typed errors."""

import json
from pathlib import Path
from typing import Any, cast

from workbench.core.errors import FormatError
from workbench.core.store import read_text

MAX_JSON = 64_000_000  # bytes of a config or an index


def read_table(file: Path) -> dict[str, Any]:
    """A JSON file that holds one table.

    Raises:
        FormatError: If it is missing, too big, or something else.
    """
    if file.is_file() and file.stat().st_size > MAX_JSON:
        raise FormatError(f"{file}: {file.stat().st_size:,} bytes; at most {MAX_JSON:,} expected.")
    text = read_text(file)
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is not JSON ({error}); download it again.") from None
    if not isinstance(data, dict):
        raise FormatError(f"{file}: expected a table, got {type(data).__name__}.")
    return cast("dict[str, Any]", data)


def as_ids(value: object) -> tuple[int, ...]:
    """Token ids from what configs hold: nothing, one, or a list."""
    listed = cast("list[object]", value) if isinstance(value, list) else [value]
    return tuple(item for item in listed if type(item) is int)
