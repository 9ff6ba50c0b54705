"""The index of a spilled trace, `trace.json`: each entry of its kind, or an error that says which.

Notable: no path stands in it. A file is named after the site or stream it holds, so that what a
hostile index names is never a file elsewhere.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from workbench.core.errors import FormatError, UnknownNameError
from workbench.core.reopened import Recipe, recipe_of
from workbench.core.sites import Site
from workbench.core.spill import FORMAT, INDEX, VERSION
from workbench.core.store import read_text

_STREAM = re.compile(r"stream\.(0|[1-9][0-9]{0,5})")
AGAIN = "Run it again, into an empty folder."


@final
@dataclass(frozen=True, eq=False)
class Index:
    """What `trace.json` says, each entry of the right kind."""

    run: str
    model: str
    fingerprint: str
    plan: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    names: Mapping[Site, str]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]  # dtype and shape
    batch: str  # digest
    recipe: Recipe | None  # of a run of everything


def index_of(folder: Path) -> Index:
    """What the index of a folder says.

    Raises:
        FormatError: If it is none, of another version, or an entry is not of its kind.
    """
    try:
        data = cast("object", json.loads(read_text(folder / INDEX)))
    except (ValueError, RecursionError) as error:
        raise FormatError(malformed(folder, f"it is not JSON ({error})")) from None
    match data:
        case {
            "format": "workbench.trace",
            "version": 1,
            "run": str() as run,
            "model": str() as model,
            "fingerprint": str() as fingerprint,
            "plan": [*plan],
            "parts": parts,
            "sites": dict() as sites,
            "tensors": dict() as tensors,
            "batch": str() as batch,
        } if all(isinstance(one, str) for one in plan):
            return Index(
                run,
                model,
                fingerprint,
                tuple(plan),
                _parts(folder, parts),
                {_site(folder, site): known(folder, name) for site, name in sites.items()},
                {name: _size(folder, size) for name, size in tensors.items()},
                batch,
                _recipe(folder, cast("dict[str, object]", data).get("replay")),
            )
        case {"format": "workbench.trace", "version": int() as version} if version != VERSION:
            raise FormatError(
                malformed(folder, f"it has version {version}; this workbench reads {VERSION}")
            )
        case _:
            raise FormatError(
                malformed(folder, f'it is not {{"format": "{FORMAT}", "version": 1, …}}')
            )


def _recipe(folder: Path, data: Any) -> Recipe | None:
    recipe = recipe_of(data)
    if data is not None and recipe is None:
        raise FormatError(malformed(folder, "it does not say how to replay"))
    return recipe


def _parts(folder: Path, parts: Any) -> tuple[tuple[int, ...], ...]:
    match parts:
        case None:
            return ()
        case [*rows] if rows and all(_are_counts(part) and part for part in rows):
            return tuple(map(tuple, rows))
        case _:
            raise FormatError(malformed(folder, "its parts are no rows"))


def _size(folder: Path, size: Any) -> tuple[str, tuple[int, ...]]:
    match size:
        case {"dtype": str() as dtype, "shape": shape} if _are_counts(shape):
            return dtype, tuple(shape)
        case _:
            raise FormatError(malformed(folder, "it says of a tensor no dtype and shape"))


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(one) is int and one >= 0 for one in cast("list[object]", values)
    )


def _site(folder: Path, name: object) -> Site:
    try:
        return Site.parse(str(name))
    except UnknownNameError:
        raise FormatError(malformed(folder, f"{name!r} is no site")) from None


def known(folder: Path, name: object) -> str:
    """The name of a tensor, which is a site's or a stream's, and so of a file in this folder.

    Raises:
        FormatError: If it is another name.
    """
    text = str(name)
    if _STREAM.fullmatch(text) is None:
        _site(folder, text)
    return text


def malformed(folder: Path, why: str) -> str:
    """What to say of an index that cannot be right."""
    return f"{folder / INDEX} is no index of a trace: {why}. {AGAIN}"
