"""The user's cache: folders that are whole or not there, whoever makes them at the same time.

Notable: a folder is made under another name and moved into place; `manifest.json` is written last
and lists every file with its size. What has no fitting manifest counts as absent and is replaced.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from workbench.core.errors import FormatError
from workbench.core.store import read_text, write_json

MANIFEST = "manifest.json"


def workbench_cache() -> Path:
    """Where assets and converted models are kept.

    $WORKBENCH_CACHE, else interp-workbench in $XDG_CACHE_HOME, else in ~/.cache.
    """
    own = os.environ.get("WORKBENCH_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "interp-workbench"


def is_complete(folder: Path, identity: Mapping[str, str]) -> bool:
    """Whether `folder` was finished as `identity`, and each file still has its size."""
    manifest = read_manifest(folder)
    if any(manifest.get(key) != value for key, value in identity.items()):
        return False
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        return False
    sizes = cast("dict[str, Any]", files)
    return all(_size(folder / name) == size for name, size in sizes.items())


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder says of itself; empty where it says nothing that can be read."""
    try:
        data: object = json.loads(read_text(folder / MANIFEST))
    except (FormatError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}


def install(
    folder: Path,
    identity: Mapping[str, str],
    build: Callable[[Path, Path], None],
    *,
    about: Mapping[str, str] | None = None,
) -> Path:
    """`folder`, made by `build(work, target)` unless it is there as `identity` already.

    `build` fills the empty folder `target`; what it puts in `work` is thrown away. A second
    process that wants the same folder waits, and finds it there. `about` is written down too.
    """
    if is_complete(folder, identity):
        return folder
    from filelock import FileLock  # 10 ms, which most runs never need

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if is_complete(folder, identity):
            return folder
        _sweep(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_prefix(folder)) as name:
            target, work = Path(name, "target"), Path(name, "work")
            target.mkdir()
            work.mkdir()
            build(work, target)
            write_json(
                target / MANIFEST, {**identity, **(about or {}), "files": _file_sizes(target)}
            )
            if folder.exists():
                folder.replace(Path(name, "old"))
            target.replace(folder)
    return folder


def _prefix(folder: Path) -> str:
    return f".{folder.name}.tmp-"


def _sweep(folder: Path) -> None:
    """Removes what a killed process left; nobody else is at work, since we hold the lock."""
    for left in folder.parent.glob(f"{_prefix(folder)}*"):
        shutil.rmtree(left, ignore_errors=True)


def _file_sizes(folder: Path) -> dict[str, int]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
