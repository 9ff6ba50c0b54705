"""Writes an activation store, shard by shard, and goes on where an earlier call was stopped.

Notable: which texts a shard holds, and how they are batched, is settled before the first forward.
A shard is written beside its place, flushed and moved there, and then entered in the index, which
is replaced whole. So a call that is killed at any point loses the shard it was at and no more, and
the finished store has the bytes of one that was never stopped.
"""

import hashlib
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import final

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from workbench.core.activation_index import (
    COLUMNS,
    DTYPES,
    FILE,
    Index,
    Recipe,
    Shard,
    check_recipe,
    plan_digest,
    read_index,
    shard_file,
)
from workbench.core.activation_store import ActivationStore, check_bytes
from workbench.core.data import PaddingSide
from workbench.core.errors import BusyError, NonFiniteError, OptionError, StorageError
from workbench.core.options import count
from workbench.core.pace import Pace, Pacer
from workbench.core.plan import Interventions
from workbench.core.protocols import Model
from workbench.core.reader import Reader, Text, reader_of, tokens_digest
from workbench.core.reading import ReadPositions, label_of
from workbench.core.run import Check, not_finite
from workbench.core.sites import Selector
from workbench.core.store import sync_folder, write_bytes

SHARD_BYTES = 64 * 2**20
SHARD_BATCHES = 64  # a shard's tokens, in batches: what a killed call may have to do again
LOCK = ".lock"


@final
@dataclass(frozen=True)
class StoreSize:
    """What a store will take on disk; the headers of its shards come on top, about 1 kB each."""

    rows: int
    shards: int
    bytes: int


def store_activations(  # noqa: PLR0913 - what to read, where it goes, and how it may be watched
    folder: str | Path,
    model: Model,
    texts: Sequence[Text],
    sites: Selector,
    *,
    position: ReadPositions = "last",
    plan: Interventions = (),
    dtype: torch.dtype | None = None,
    max_tokens: int = 2048,
    padding_side: PaddingSide = "right",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[Pace], None] | None = None,
    check: Check | None = None,
) -> ActivationStore:
    """The activations of each text on disk; the same call again goes on where it was stopped.

    Options as of `harvest`. `dtype` is what rows are kept in (None: as they are read), and a shard
    takes up to `shard_bytes`, or 64 batches' tokens; twice its bytes are held in memory. Shards
    that are there already are held against their digests and kept; a finished store costs no
    forward.

    Raises:
        MismatchError: If the folder holds a store of something else; says what differs.
        BusyError: If another process or thread is writing to it.
        StorageError: If the disk is too small for what is missing, or cannot be written to.
        FormatError: If a shard that is there has been changed.
        NonFiniteError: If a row is not finite, or not in `dtype`.
        NotReplayableError: If the plan holds a bare function, by which no store can be told.
    """
    reader = reader_of(
        model,
        texts,
        sites,
        position=position,
        plan=plan,
        max_tokens=max_tokens,
        padding_side=padding_side,
    )
    label, place = label_of(position), Path(folder)
    expected = _recipe(reader, label, dtype or model.dtype)
    with _storing(place):
        place.mkdir(parents=True, exist_ok=True)
    with _claimed(place):
        if (place / FILE).exists():
            index = _resumed(place, expected, given=dtype is not None)
        else:
            index = _begun(place, reader, expected, dtype, count("shard_bytes", shard_bytes))
        _write(place, reader, index, progress, check)
    return ActivationStore.open(place)


def store_size(  # noqa: PLR0913 - the arguments that decide it
    model: Model,
    texts: Sequence[Text],
    sites: Selector,
    *,
    position: ReadPositions = "last",
    dtype: torch.dtype | None = None,
    max_tokens: int = 2048,
    shard_bytes: int = SHARD_BYTES,
) -> StoreSize:
    """What `store_activations` would take on disk; costs one forward of the first text.

    Raises:
        UnknownNameError: If the model lacks one of `sites`.
        OptionError: If a text is too short for `position`.
    """
    reader = reader_of(model, texts, sites, position=position, max_tokens=max_tokens)
    recipe = _recipe(reader, label_of(position), dtype or model.dtype)
    index = _planned(reader, recipe, dtype, count("shard_bytes", shard_bytes))
    return StoreSize(index.n_rows, len(index.shards), index.n_rows * index.row_bytes)


def _recipe(reader: Reader, position: object, dtype: torch.dtype) -> Recipe:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError("dtype", f"one of {', '.join(DTYPES)}", name)
    return Recipe(
        fingerprint=reader.model.fingerprint,
        model_dtype=str(reader.model.dtype).removeprefix("torch."),
        sites=tuple(map(str, reader.sites)),
        position=position,
        dtype=name,
        data=tokens_digest(reader.ids),
        plan=plan_digest(reader.plan),
        max_tokens=reader.max_tokens,
        padding_side=reader.padding_side,
    )


def _planned(reader: Reader, recipe: Recipe, dtype: torch.dtype | None, shard_bytes: int) -> Index:
    """The index of a store to be written; one forward says how wide its rows are."""
    rows = list(next(reader.chunks([0])).rows.values())
    kept = dtype or reduce(torch.promote_types, (part.dtype for part in rows))
    recipe = replace(recipe, dtype=str(kept).removeprefix("torch."))
    widths = tuple(part.shape[1] for part in rows)
    empty = Index(recipe, reader.model.name, widths, ())
    return replace(empty, shards=tuple(_layout(reader, empty.row_bytes, shard_bytes)))


def _layout(reader: Reader, row_bytes: int, shard_bytes: int) -> Iterator[Shard]:
    most, first, tokens = SHARD_BATCHES * reader.max_tokens, 0, 0
    offsets, lengths = reader.offsets, reader.lengths
    for text, length in enumerate(lengths):
        full = (offsets[text + 1] - offsets[first]) * row_bytes > shard_bytes
        if text > first and (full or tokens + length > most):
            yield Shard((first, text), (offsets[first], offsets[text]), tokens)
            first, tokens = text, 0
        tokens += length
    yield Shard((first, len(lengths)), (offsets[first], offsets[-1]), tokens)


def _begun(
    folder: Path, reader: Reader, recipe: Recipe, dtype: torch.dtype | None, shard_bytes: int
) -> Index:
    others = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    if others:
        raise OptionError("folder", "empty, or hold an activation store", others[:3])
    index = _planned(reader, recipe, dtype, shard_bytes)
    _check_room(folder, index)
    with _storing(folder):
        index.save(folder)
    return index


def _resumed(folder: Path, expected: Recipe, *, given: bool) -> Index:
    """The index of a store begun before; shards that have gone missing are to be written again."""
    index = read_index(folder)
    compared = {name: value for name, value in vars(expected).items() if given or name != "dtype"}
    check_recipe(folder, index, compared)
    for number, shard in enumerate(index.shards):
        file = shard_file(folder, number)
        if shard.sha256 is not None and not file.exists():
            index = index.with_shard(number, Shard(shard.texts, shard.rows, shard.tokens))
        elif shard.sha256 is not None:
            check_bytes(file, shard)
    for pattern in (f".{FILE}.*", ".shard_*.safetensors.*"):  # half-written by a killed call
        for file in folder.glob(pattern):
            file.unlink()
    _check_room(folder, index)
    return index


def _write(
    folder: Path,
    reader: Reader,
    index: Index,
    progress: Callable[[Pace], None] | None,
    check: Check | None,
) -> None:
    pacer = Pacer(len(reader.ids), sum(reader.lengths), progress)
    for shard in index.shards:
        if shard.sha256 is not None:
            pacer.find(shard.texts[1] - shard.texts[0], shard.tokens)
    for number in index.missing:
        shard = index.shards[number]
        tensors, acted = _read(reader, index, shard, pacer, check)
        content = save(tensors)
        done = replace(
            shard, size=len(content), sha256=hashlib.sha256(content).hexdigest(), acted=acted
        )
        index = index.with_shard(number, done)
        if not index.missing:  # before the store counts as finished
            columns = zip(*(one.acted for one in index.shards), strict=True)
            reader.check_acted([sum(column) for column in columns])
        with _storing(folder):
            write_bytes(shard_file(folder, number), content)
            sync_folder(folder)
            index.save(folder)


def _read(
    reader: Reader, index: Index, shard: Shard, pacer: Pacer, check: Check | None
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """The tensors of a shard, in the order of its texts, and how often the plan acted.

    Raises:
        NonFiniteError: If a row is not finite in the dtype it is kept in.
    """
    first, n_rows = shard.rows[0], shard.rows[1] - shard.rows[0]
    tensors = {
        str(site): torch.empty(n_rows, width, dtype=index.dtype)
        for site, width in zip(index.sites, index.widths, strict=True)
    }
    tensors.update({name: torch.empty(n_rows, dtype=torch.int32) for name in COLUMNS})
    acted = [0] * len(reader.plan)
    for chunk in reader.chunks(range(*shard.texts), check=check):
        at = chunk.where.row - first
        for site, rows in chunk.rows.items():
            kept = rows.to("cpu", index.dtype)
            if bad := not_finite(kept):  # the largest float16 is 65,504
                raise NonFiniteError(f"{site}, as {index.recipe.dtype}", bad, kept.numel())
            tensors[str(site)][at] = kept
        told = (chunk.where.text, chunk.where.pos, chunk.where.token)
        for name, column in zip(COLUMNS, told, strict=True):
            tensors[name][at] = column.int()
        acted = [before + now for before, now in zip(acted, chunk.acted, strict=True)]
        pacer.add(len(chunk.texts), chunk.tokens)
    return tensors, tuple(acted)


def _check_room(folder: Path, index: Index) -> None:
    rows = sum(
        shard.rows[1] - shard.rows[0] for shard in map(index.shards.__getitem__, index.missing)
    )
    needed, free = rows * index.row_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder}: {needed / 1e9:,.1f} GB are to be written, {free / 1e9:,.1f} GB are free. "
            "Take fewer sites or positions, dtype=torch.bfloat16, or harvest_into Moments."
        )


@contextmanager
def _claimed(folder: Path) -> Generator[None]:
    """Nobody else writes meanwhile; the system lets go of the lock of a process that dies.

    Raises:
        BusyError: If somebody else does.
        StorageError: If the folder cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(
            f"{folder} is being written by another process or thread; wait for it, or stop it."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"{folder} cannot be locked: {error}.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _storing(folder: Path) -> Generator[None]:
    """What goes wrong with the disk, said with what to do.

    Raises:
        StorageError: If something does.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror or error}. What was written before is "
            "whole; make room and make the same call again."
        ) from None
