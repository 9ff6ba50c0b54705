"""What an activation store is, as JSON: of what it was made, and which shards are whole.

Notable: no path stands in it. A shard's file is named after its number, so an index from elsewhere
can point nowhere but into its own folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, final

import torch

from workbench.core.errors import FormatError, MismatchError, UnknownNameError
from workbench.core.plan import Plan, to_data
from workbench.core.provenance import digest, package_version
from workbench.core.sites import Site, Sites
from workbench.core.store import read_text, sync_folder, write_json

FORMAT, VERSION, FILE = "workbench.activations", 1, "index.json"
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
COLUMNS = ("text", "pos", "token")  # of each row, beside its values
WHERE_BYTES = 4 * len(COLUMNS)  # int32


@final
@dataclass(frozen=True)
class Recipe:
    """What decides the values: equal recipes give equal stores."""

    fingerprint: str  # of the model
    model_dtype: str
    sites: tuple[str, ...]
    position: object
    dtype: str
    data: str  # digest of the tokens of all texts
    plan: str  # digest
    max_tokens: int
    padding_side: str


@final
@dataclass(frozen=True)
class Shard:
    """The rows of consecutive texts, in one file; not there yet where `sha256` is None."""

    texts: tuple[int, int]  # first, and one past the last
    rows: tuple[int, int]
    tokens: int
    size: int | None = None  # bytes of the file
    sha256: str | None = None
    acted: tuple[int, ...] = ()  # by intervention of the plan


@final
@dataclass(frozen=True)
class Index:
    """The recipe, the widths of the rows, and all shards, those to come included."""

    recipe: Recipe
    model: str  # its name, for people
    widths: tuple[int, ...]  # by site
    shards: tuple[Shard, ...]
    workbench: str = package_version()

    @property
    def sites(self) -> Sites:
        """Where the rows were read."""
        return tuple(map(Site.parse, self.recipe.sites))

    @property
    def dtype(self) -> torch.dtype:
        """What the rows are kept in."""
        return DTYPES[self.recipe.dtype]

    @property
    def n_rows(self) -> int:
        """How many rows there are, or will be."""
        return self.shards[-1].rows[1]

    @property
    def row_bytes(self) -> int:
        """What one row takes at all sites."""
        return sum(self.widths) * self.dtype.itemsize + WHERE_BYTES

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the shards that are not written yet."""
        return tuple(i for i, shard in enumerate(self.shards) if shard.sha256 is None)

    def with_shard(self, number: int, shard: Shard) -> "Index":
        """The same with one shard's entry replaced."""
        shards = list(self.shards)
        shards[number] = shard
        return replace(self, shards=tuple(shards))

    def save(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        write_json(folder / FILE, {"format": FORMAT, "version": VERSION, **asdict(self)})
        sync_folder(folder)


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard_{number:05d}.safetensors"


def plan_digest(plan: Plan) -> str:
    """A digest of a plan and its operands.

    Raises:
        NotReplayableError: If an intervention is a bare function, which has none.
    """
    data, tensors = to_data(plan)
    return digest([data, {name: tensor.double() for name, tensor in sorted(tensors.items())}])


def check_recipe(folder: Path, index: Index, expected: Mapping[str, object]) -> None:
    """Refuses a store of another recipe; `expected` are the parts that are known.

    Raises:
        MismatchError: If it differs; says what.
    """
    found = vars(index.recipe)
    differences = {
        name: (found[name], value) for name, value in expected.items() if found[name] != value
    }
    if differences:
        raise MismatchError(folder, differences)


def read_index(folder: Path) -> Index:
    """Reads what `Index.save` wrote.

    Raises:
        FormatError: If it is missing, damaged, or of another version.
    """
    file = folder / FILE
    try:
        data = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:  # ValueError: also what read_text raises
        raise FormatError(f"{folder} is no activation store: {error}") from None
    match data:
        case {"format": "workbench.activations", "version": int() as version} if version != VERSION:
            raise FormatError(f"{file} has version {version}; this workbench reads {VERSION}.")
        case {
            "format": "workbench.activations",
            "recipe": dict() as recipe,
            "model": str() as model,
            "widths": list() as widths,
            "shards": [_, *_] as shards,
            "workbench": str() as workbench,
        }:
            return _index(file, recipe, model, widths, shards, workbench)
        case _:
            raise FormatError(f"{file} is no index of an activation store.")


def _index(
    file: Path,
    recipe: dict[str, Any],
    model: str,
    widths: list[Any],
    shards: Sequence[Any],
    workbench: str,
) -> Index:
    read = tuple(_shard(file, number, entry) for number, entry in enumerate(shards))
    made_of = _recipe(file, recipe)
    ends = [(0, 0), *((shard.texts[1], shard.rows[1]) for shard in read)]
    starts = [(shard.texts[0], shard.rows[0]) for shard in read]
    if starts != ends[:-1] or not _counts(widths) or len(widths) != len(made_of.sites):
        raise FormatError(f"{file} contradicts itself: shards and widths do not fit together.")
    return Index(made_of, model, tuple(widths), read, workbench)


_TYPES = {"max_tokens": int, "sites": list, "position": (str, int, list, dict)}  # others: str


def _recipe(file: Path, entry: dict[str, Any]) -> Recipe:
    names = tuple(Recipe.__dataclass_fields__)
    fits = sorted(entry) == sorted(names) and all(
        isinstance(value, _TYPES.get(name, str)) for name, value in entry.items()
    )
    if not fits or entry["dtype"] not in DTYPES:
        raise FormatError(f"{file}: its recipe must have {', '.join(names)}, and known dtypes.")
    try:
        sites = tuple(str(Site.parse(str(name))) for name in entry["sites"])
    except UnknownNameError as error:
        raise FormatError(f"{file}: {error}") from None
    entry = {**entry, "sites": sites}
    return Recipe(**entry)


def _shard(file: Path, number: int, entry: object) -> Shard:
    match entry:
        case {
            "texts": [int(), int()] as texts,
            "rows": [int(), int()] as rows,
            "tokens": int() as tokens,
            "size": None | int() as size,
            "sha256": None | str() as sha256,
            "acted": list() as acted,
        } if _counts([*texts, *rows, *acted]) and texts[0] < texts[1] and rows[0] <= rows[1]:
            whole = cast("tuple[int, int]", tuple(texts)), cast("tuple[int, int]", tuple(rows))
            return Shard(*whole, tokens, size, sha256, tuple(acted))
        case _:
            raise FormatError(f"{file}: shard {number} is malformed: {entry!r:.120}.")


def _counts(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
