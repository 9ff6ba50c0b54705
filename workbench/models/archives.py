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
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

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
    read = _unzip if archive.suffix in {".whl", ".zip"} else _untar
    try:
        found = read(archive, members, max_bytes)
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


def _unzip(archive: Path, members: Mapping[str, Path], max_bytes: int) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        _check_names(archive, (info.filename for info in infos), members)
        left = max_bytes
        for info in infos:
            if info.filename in members:
                mode = info.external_attr >> 16
                if info.is_dir() or (mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode)):
                    raise _hostile(archive, info.filename, "is a link or no plain file")
                with opened.open(info) as stream:
                    left -= _write(stream, members[info.filename], left, archive)
    return {info.filename for info in infos}


def _untar(archive: Path, members: Mapping[str, Path], max_bytes: int) -> set[str]:
    names: list[str] = []
    left = announced = max_bytes
    with tarfile.open(archive, "r:*") as opened:
        for info in opened:
            names.append(info.name)
            _check_names(archive, names[-1:], {})
            announced -= info.size if info.isreg() else 0
            if announced < 0:  # skipping a member decompresses it, so that is bounded too
                raise _too_big(archive, max_bytes)
            if info.name in members:
                stream = opened.extractfile(info) if info.isreg() else None
                if stream is None:
                    raise _hostile(archive, info.name, "is a link or no plain file")
                left -= _write(stream, members[info.name], left, archive)
    _check_names(archive, names, members)
    return set(names)


def _write(stream: IO[bytes], file: Path, limit: int, archive: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with file.open("xb") as out:
        while piece := stream.read(CHUNK):
            written += len(piece)
            if written > limit:
                raise _too_big(archive, limit)
            out.write(piece)
    return written


def _check_names(archive: Path, names: Iterable[str], members: Mapping[str, Path]) -> None:
    seen: set[str] = set()
    for name in names:
        if not is_inside(name):
            raise _hostile(archive, name, "would leave the folder")
        if name in members and name in seen:
            raise _hostile(archive, name, "stands there twice")
        seen.add(name)


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


def _hostile(archive: Path, member: str, why: str) -> AssetError:
    return AssetError(
        f"{archive.name} is refused: its member {member!r} {why}. Nothing of it was kept."
    )


def _too_big(archive: Path, limit: int) -> AssetError:
    return AssetError(
        f"{archive.name} is refused: it unpacks to more than {limit:,} bytes. Nothing was kept."
    )
