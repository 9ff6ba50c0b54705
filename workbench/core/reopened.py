"""A run of everything, made again from the streams and the plan that it left in files.

Notable: what is replayed is what the run's own trace would replay, bit for bit: the same plan on
the same rows, from the mapped streams, on a model with the same fingerprint.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, final

from torch import Tensor

from workbench.core.buckets import Bucket, plan_of_bucket
from workbench.core.data import Batch
from workbench.core.errors import FormatError
from workbench.core.gathered import Gathered
from workbench.core.plan import Plan
from workbench.core.program import block_of, compile_plan
from workbench.core.protocols import Model
from workbench.core.replay import Left, Replay, Source, stream_name
from workbench.core.request import Request
from workbench.core.sites import Sites

PLAN_FILES = ("plan.json", "plan.safetensors")
Open = Callable[[str, int | None], Tensor]  # a tensor's name, and the part of the run it is of


@final
class Recipe(NamedTuple):
    """How a run of everything is made again: where it started, and of which plan."""

    first: int
    given: bool  # whether it started from a stream that it was given
    digest: str  # of the plan's files


def write_recipe(folder: Path, asked: Request) -> dict[str, object] | None:
    """Writes the plan of a run of everything, and gives its recipe as data; None of another run."""
    if not asked.lazy:
        return None
    asked.program.plan.save(folder)
    return {"first": asked.first, "given": asked.given is not None, "plan": digest_of(folder)}


def recipe_of(data: Any) -> Recipe | None:
    """Reads what `write_recipe` gave; None if it is no recipe."""
    match data:
        case {"first": int() as first, "given": bool() as given, "plan": str() as digest}:
            return Recipe(first, given, digest) if first >= 0 else None
        case _:
            return None


def digest_of(folder: Path) -> str:
    """A SHA-256 of the plan's files."""
    total = hashlib.sha256()
    for name in PLAN_FILES:
        total.update((folder / name).read_bytes())
    return total.hexdigest()


def reopen(
    recipe: Recipe,
    folder: Path,
    model: Model,
    batch: Batch,
    buckets: Sequence[Bucket],
    opened: Open,
) -> Source:
    """What makes the sites that are not in the files.

    Raises:
        FormatError: If the plan is another one, or cannot be read.
    """
    if digest_of(folder) != recipe.digest:
        raise FormatError(f"{folder} has the plan of another run. Run it again, into another one.")
    plan = Plan.load(folder)
    sites = model.sites
    if recipe.given:
        sites = tuple(site for site in sites if block_of(site, model) >= recipe.first)
    if not buckets:
        return _replay(recipe, model, batch, plan, sites, lambda name: opened(name, None))
    lefts: list[Left] = []
    for number, bucket in enumerate(buckets):
        own, _ = plan_of_bucket(plan, batch, bucket, model)
        part = _part(opened, number)
        source = _replay(recipe, model, bucket.batch, own, sites, part)
        lefts.append(Left(MappingProxyType(dict(source.kept())), source, None))
    return Gathered(sites, batch, tuple(buckets), tuple(lefts))


def _part(opened: Open, number: int) -> Callable[[str], Tensor]:
    return lambda name: opened(name, number)


def _replay(
    recipe: Recipe,
    model: Model,
    batch: Batch,
    plan: Plan,
    sites: Sites,
    opened: Callable[[str], Tensor],
) -> Replay:
    layers = range(recipe.first, model.sizes.n_layers + 1)
    streams = tuple(opened(stream_name(layer)).to(model.device) for layer in layers)
    program, there = compile_plan(plan, model, len(batch.tokens)), _moved(batch, model)
    return Replay(model, there, program, sites, recipe.first, streams)


def _moved(batch: Batch, model: Model) -> Batch:
    """The batch where the model is; files are read on the CPU."""
    if batch.tokens.device == model.device:
        return batch
    parts = {name: part.to(model.device) for name, part in vars(batch).items() if part is not None}
    return replace(batch, **parts)
