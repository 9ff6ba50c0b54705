"""What a run left in a folder, read again: by another process, without the model.

Notable: the index says of which model, plan and batch the tensors are, and no path stands in it: a
file is named after the site it holds. Each file carries the number of its run, so one from another
trace is refused, however much alike. Headers are read on opening, tensors when they are asked for.
"""

import hashlib
from collections.abc import ItemsView, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from workbench.core.buckets import Bucket, bucket_of
from workbench.core.data import Batch
from workbench.core.errors import (
    FormatError,
    MismatchError,
    NotRecordedError,
)
from workbench.core.gathered import together
from workbench.core.protocols import Model
from workbench.core.reopened import PLAN_FILES, reopen
from workbench.core.replay import Source
from workbench.core.sites import Selector, Site, Sites, select
from workbench.core.spill import BATCH, INDEX, dtype_name, part_name
from workbench.core.store import is_folder
from workbench.core.trace_index import AGAIN, Index, index_of, known, malformed


@final
@dataclass(frozen=True, eq=False, repr=False)
class SpilledTrace(Mapping[Site, Tensor]):
    """The recorded activations of a finished run, by site or by its name, mapped from files.

    Shapes, rows and pads are those of the run's `Trace`. Tensors of a run that was one batch are
    the mapped files themselves and are not to be written into; those of one in batches are put
    together at each reading. A run of everything has its streams here, and no model to make the
    other sites with.
    """

    folder: Path
    model: str
    fingerprint: str  # of the model
    plan: tuple[str, ...]  # for people: plan.save keeps one
    batch: Batch
    names: Mapping[Site, str] = field(repr=False)  # in files
    buckets: tuple[Bucket, ...] = field(repr=False)  # none: the run was one batch
    replay: Source | None = field(default=None, repr=False)  # makes what is not in the files

    @override
    def __getitem__(self, site: Site | str) -> Tensor:
        """The activation at a site.

        Raises:
            NotRecordedError: If it is not in the folder.
            UnknownNameError: If no such site exists anywhere.
            FormatError: If its file has gone.
        """
        key = Site.parse(site) if isinstance(site, str) else site
        return dict(self.pairs((key,)))[key]

    def read(self, selector: Selector) -> dict[Site, Tensor]:
        """The activations at several sites; each block they are in is replayed once, if at all.

        Raises:
            UnknownNameError: If the folder has none that is named so.
            EmptySelectionError: If the selection is empty.
            FormatError: If a file has gone.
        """
        return dict(self.pairs(select(selector, self.sites)))

    def pairs(self, sites: Sites) -> Iterator[tuple[Site, Tensor]]:
        """Sites, which are in forward order, and their activations, one block at a time.

        Raises:
            NotRecordedError: If one is not in the folder.
            FormatError: If a file has gone.
        """
        missing = [site for site in sites if site not in self.names]
        if missing and (self.replay is None or not set(missing) <= set(self.replay.sites)):
            hint = "give load_trace its model=, or run it again with record="
            raise NotRecordedError(f"{self.folder} does not have {missing[0]}; {hint}.")
        made = iter(()) if self.replay is None else self.replay.read(missing)
        for site in sites:
            yield (site, self._stored(site)) if site in self.names else next(made)

    def _stored(self, site: Site) -> Tensor:
        name = self.names[site]
        if not self.buckets:
            return _tensor(self.folder, name)
        parts = [_tensor(self.folder, part_name(name, i)) for i in range(len(self.buckets))]
        return together(site, self.batch, self.buckets, parts)

    @property
    def sites(self) -> Sites:
        """What can be read, in forward order."""
        return tuple(self.names) if self.replay is None else self.replay.sites

    @override
    def __contains__(self, site: object) -> bool:
        return site in self.sites or (isinstance(site, str) and site in map(str, self.sites))

    @override
    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    @override
    def __len__(self) -> int:
        return len(self.sites)

    @override
    def items(self) -> ItemsView[Site, Tensor]:
        """Sites and activations, in forward order, one block at a time."""
        return _Items(self)

    @override
    def __eq__(self, other: object) -> bool:
        return self is other  # comparing tensors would answer with a tensor

    @override
    def __hash__(self) -> int:
        return id(self)

    @override
    def __repr__(self) -> str:
        rows, columns = self.batch.tokens.shape
        size = f"{rows} x {columns} tokens, {len(self)} sites, {len(self.plan)} interventions"
        return f"SpilledTrace({str(self.folder)!r}, of {self.model!r}, {size})"


@final
class _Items(ItemsView[Site, Tensor]):
    def __init__(self, trace: SpilledTrace) -> None:
        super().__init__(trace)
        self._trace = trace

    @override
    def __iter__(self) -> Iterator[tuple[Site, Tensor]]:
        return self._trace.pairs(self._trace.sites)


def load_trace(folder: str | Path, *, model: Model | None = None) -> SpilledTrace:
    """Opens what `run(…, spill=folder)` left; with `model`, only if it was that model's.

    With its model, a run of everything (`record="all"`) offers every site, and replays blocks.
    Costs the headers of all files; the bytes of a tensor are read as it is used, and not checked.

    Raises:
        FormatError: If the run did not finish, or a file is missing, cut off, of another run, a
            link, or unknown here; names it.
        MismatchError: If it is of another model.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise FormatError(f"{folder} is no folder.")
    if not (folder / INDEX).exists():
        raise FormatError(f"{folder} has no {INDEX}: no run was finished there. {AGAIN}")
    index = index_of(folder)
    _check_files(folder, index)
    if model is not None and model.fingerprint != index.fingerprint:
        raise MismatchError(folder, {"fingerprint": (index.fingerprint, model.fingerprint)})
    batch = _batch(folder, index)
    rows = sorted(chain.from_iterable(index.parts))
    if index.parts and rows != list(range(len(batch.tokens))):
        raise FormatError(malformed(folder, "its parts are not the rows of its batch"))
    buckets = tuple(bucket_of(batch, part) for part in index.parts)
    _check_tensors(folder, index)
    for number, one in enumerate([bucket.batch for bucket in buckets] or [batch]):
        _check_shapes(folder, index, number if buckets else None, one)
    replay = None
    if model is not None and index.recipe is not None:
        replay = reopen(
            index.recipe,
            folder,
            model,
            batch,
            buckets,
            lambda n, i: _tensor(folder, part_name(n, i)),
        )
    return SpilledTrace(
        folder, index.model, index.fingerprint, index.plan, batch, index.names, buckets, replay
    )


def _check_files(folder: Path, index: Index) -> None:
    """Refuses a folder that has less than its index says, or more.

    Raises:
        FormatError: If so; names the files.
    """
    for name in index.tensors:
        number, _, rest = name.partition(".") if index.parts else ("", "", name)
        if index.parts and not (number.isdecimal() and int(number) < len(index.parts)):
            raise FormatError(
                malformed(folder, f"{name!r} is of none of its {len(index.parts)} parts")
            )
        known(folder, rest)
    files = {INDEX, BATCH, *(f"{name}.safetensors" for name in index.tensors)}
    files |= set() if index.recipe is None else set(PLAN_FILES)
    # A dot begins what file managers and network disks leave behind; nothing here reads it.
    found = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    if missing := sorted(files - found):
        raise FormatError(f"{folder} lacks {', '.join(missing)}. {AGAIN}")
    if unknown := sorted(found - files):
        raise FormatError(f"{folder} has files of no trace: {', '.join(unknown)}. Move them away.")
    if links := sorted(name for name in files if (folder / name).is_symlink()):
        raise FormatError(f"{folder}: {', '.join(links)} is a link. Put the file itself there.")


def _batch(folder: Path, index: Index) -> Batch:
    file = folder / BATCH
    if hashlib.sha256(file.read_bytes()).hexdigest() != index.batch:
        raise FormatError(f"{file} is not the batch of this trace. {AGAIN}")
    with _opened(file) as stored:
        parts = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no dict
    tokens = parts.get("tokens", torch.empty(0))
    each, columns = tokens.shape[:1], tokens.shape
    shapes = {"tokens": columns, "real": columns, "start": each, "prompt": each}
    shapes |= {"types": columns, "asked": each}
    whole = {"tokens", "start", "prompt"} <= set(parts) <= {*shapes, "said", "seen"}
    if not whole or any(parts[n].shape != s for n, s in shapes.items() if n in parts):
        raise FormatError(f"{file} holds no batch. {AGAIN}")
    return Batch(
        tokens,
        parts.get("real"),
        parts["start"],
        parts["prompt"],
        parts.get("said"),
        parts.get("seen"),
        types=parts.get("types"),
        asked=parts.get("asked"),
    )


def _check_tensors(folder: Path, index: Index) -> None:
    """Refuses files whose headers are not what the index says.

    Raises:
        FormatError: If one is so; names it.
    """
    for name, (dtype, shape) in index.tensors.items():
        file = folder / f"{name}.safetensors"
        with _opened(file) as stored:
            run = (stored.metadata() or {}).get("run")
            names = list(stored.keys())
            found = [(n, stored.get_slice(n).get_shape()) for n in names]
        if run != index.run:
            raise FormatError(f"{file} is of another run. {AGAIN}")
        if found != [(name, list(shape))]:
            raise FormatError(f"{file} has {found}, not {name!r} of {list(shape)}. {AGAIN}")
        if dtype_name(_empty(folder, name)) != dtype:
            raise FormatError(f"{file} is not of {dtype}. {AGAIN}")


def _check_shapes(folder: Path, index: Index, part: int | None, batch: Batch) -> None:
    """Refuses tensors that are no activations of a batch.

    Raises:
        FormatError: If one is so; names it.
    """
    rows, width = batch.tokens.shape
    sizes = {"batch": rows, "pos": width, "query": width, "key": width}
    for site, stem in index.names.items():
        name = part_name(stem, part)
        if name not in index.tensors:
            why = f"{site} is in {name}, which is not among its tensors"
            raise FormatError(malformed(folder, why))
        shape = index.tensors[name][1]
        fits = len(shape) == len(site.axes) and all(
            sizes.get(axis, size) == size for axis, size in zip(site.axes, shape, strict=True)
        )
        if not fits:
            wanted = f"({' '.join(site.axes)}) of {rows} x {width} tokens"
            raise FormatError(malformed(folder, f"{name} of {list(shape)} is not {site} {wanted}"))


def _tensor(folder: Path, name: str) -> Tensor:
    with _opened(folder / f"{name}.safetensors") as stored:
        return stored.get_tensor(name)


def _empty(folder: Path, name: str) -> Tensor:
    """No value of a tensor, which still has its dtype; its bytes are not read."""
    with _opened(folder / f"{name}.safetensors") as stored:
        return stored.get_slice(name)[:0]


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{file} cannot be read: {error}. {AGAIN}") from None
