"""Named members out of a wheel or a source distribution, and nothing else.

Notable: members are asked for by name and written to names of ours, so an archive decides neither
what is written nor where. It is refused as a whole all the same if any of its names would leave
the folder, if a wanted member is a link or stands there twice, or if more comes out than was
allowed: such an archive is not the one we know.
"""

import hashlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from workbench.core.errors import AssetError

CHUNK = 1 << 20
DAMAGE = (  # what readers of damaged archives raise, beside an OSError without a number
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # an encrypted member, or (NotImplementedError) an unknown compression
    ValueError,  # a nonsense number in a header
)


def sha256(file: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    state = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(CHUNK):
            state.update(piece)
    return state.hexdigest()


def check_sha256(file: Path, expected: str) -> None:
    """Refuses a file that is not the known one.

    Raises:
        AssetError: If its hash differs; names both.
    """
    got = sha256(file)
    if got != expected:
        raise AssetError(wrong_hash(file.name, expected, got))


def wrong_hash(name: str, expected: str, got: str) -> str:
    """What to say of a file that is not the known one."""
    return (
        f"{name}: expected SHA-256 {expected}, got {got}. The file was changed or cut off on its "
        "way: pull it again; if it stays so, do not use it and report it."
    )


def unpack(archive: Path, members: Mapping[str, Path], *, max_bytes: int) -> None:
    """Writes each of `members` (a name in the archive, and the file it becomes).

    A `.zip` or `.whl` is read as such, anything else as a tar archive, plain or compressed. At most
    `max_bytes` are unpacked, counted as they come, whatever the archive announces.

    Raises:
        AssetError: If the archive is damaged, hostile, too big, or lacks a member.
        OSError: If the disk is full or may not be written.
    """
    try:
        found = _take(archive, members, max_bytes)
    except AssetError:
        raise
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the archive's
        message = f"{archive.name} is damaged or cut off ({error}); pull it again."
        raise AssetError(message) from None
    lacking = sorted(members.keys() - found)
    if lacking:
        raise AssetError(f"{archive.name} lacks {', '.join(lacking)}; it is not the known archive.")


def _take(archive: Path, members: Mapping[str, Path], max_bytes: int) -> set[str]:
    found: set[str] = set()
    left = max_bytes
    for entry in _unzip(archive) if archive.suffix in {".whl", ".zip"} else _untar(archive):
        _check(archive, entry, found, members)
        found.add(entry.name)
        if entry.cost > max_bytes:
            raise AssetError(_too_big(archive, max_bytes))
        if entry.name in members:
            left -= _write(entry, members[entry.name], left, archive)
    return found


class _Entry(NamedTuple):
    """A member: is it a plain file, and what must be unpacked, in bytes, to come past it."""

    name: str
    plain: bool
    cost: int
    open: Callable[[], AbstractContextManager[IO[bytes] | None]]


def _unzip(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0: written where files have no kind
            plain = not info.is_dir() and kind in (0, stat.S_IFREG)
            yield _Entry(info.filename, plain, 0, partial(opened.open, info))


def _untar(archive: Path) -> Iterator[_Entry]:
    cost = 0  # a compressed tar has no directory: to skip a member is to unpack it
    with tarfile.open(archive, "r:*") as opened:
        for info in opened:
            cost += info.size if info.isreg() else 0
            yield _Entry(info.name, info.isreg(), cost, partial(_opened, opened, info))


@contextmanager
def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Generator[IO[bytes] | None]:
    yield tar.extractfile(info)


def _check(archive: Path, entry: _Entry, found: set[str], members: Mapping[str, Path]) -> None:
    why = ""
    if not is_inside(entry.name):
        why = "would leave the folder"
    elif entry.name in members and entry.name in found:
        why = "stands there twice"
    elif entry.name in members and not entry.plain:
        why = "is a link or no plain file"
    if why:
        raise AssetError(
            f"{archive.name} is refused: its member {entry.name!r} {why}. Nothing of it was kept."
        )


def _write(entry: _Entry, file: Path, limit: int, archive: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with entry.open() as stream, file.open("xb") as out:
        while stream is not None and (piece := stream.read(CHUNK)):
            written += len(piece)
            if written > limit:
                raise AssetError(_too_big(archive, limit))
            out.write(piece)
    return written


def is_inside(name: str) -> bool:
    """Whether a relative file name stays within its folder, on any operating system."""
    windows = PureWindowsPath(name)
    return bool(
        name
        and "\0" not in name
        and not PurePosixPath(name).is_absolute()
        and not windows.drive
        and not windows.root
        and ".." not in windows.parts
    )


def _too_big(archive: Path, limit: int) -> str:
    return f"{archive.name} is refused: it unpacks to more than {limit:,} bytes. Nothing was kept."
