"""`python -m benchmarks [GROUP …]`: runs cases and prints their tables in Markdown.

All groups without one; `--turns 1` for a quick look.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from typing import Annotated

import typer

from benchmarks import (
    capture,
    everything,
    forward,
    generation,
    growth,
    loading,
    many,
    sweeps,
    table,
)
from benchmarks.peers import Peers
from benchmarks.peers import load as load_peers


class Group(StrEnum):
    """What can be asked for by name."""

    FORWARD = "forward"
    EVERYTHING = "everything"
    GENERATION = "generation"
    CAPTURE = "capture"
    MANY = "many"
    SWEEPS = "sweeps"
    LOADING = "loading"
    GROWTH = "growth"


CASES: Mapping[Group, table.Cases] = {
    Group.FORWARD: forward.cases,
    Group.EVERYTHING: everything.cases,
    Group.GENERATION: generation.cases,
    Group.CAPTURE: capture.cases,
    Group.MANY: many.cases,
    Group.SWEEPS: sweeps.cases,
}


@cache
def peers(*, whole: bool) -> Peers:
    """Loaded once, if any group needs them."""
    return load_peers(whole=whole)


def main(
    groups: Annotated[list[Group] | None, typer.Argument(help="What to run; all if none.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="At most so many a case.")] = None,
    *,
    whole: Annotated[bool, typer.Option(help="Ours loaded with rearrange='whole'.")] = False,
) -> None:
    """Times the workbench beside its peers, on the same weights; every line as it is measured."""
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
    failed: list[str] = []
    manner = "whole tiles" if whole else "as loaded by default"
    say(f"{table.machine()} The workbench: {manner}. Load before: {table.busy()}.")
    for group in groups or list(Group):
        say(f"\n## {group}\n")
        for line in lines(group, failed, turns, whole=whole):
            say(line)
    say(f"Load after: {table.busy()}.")
    if failed:
        say(f"**NOT EQUAL, and so not timed: {'; '.join(failed)}.**")
        sys.exit(1)


def lines(
    group: Group, failed: list[str], turns: int | None, *, whole: bool = False
) -> Iterator[str]:
    """The table of a group, and what belongs under it."""
    if group is Group.LOADING:
        yield from loading.table(turns)
        return
    if group is Group.GROWTH:
        yield from growth.table(peers(whole=whole), failed, turns)
    else:
        yield from table.table(CASES[group](peers(whole=whole)), failed, turns)
    if group is Group.EVERYTHING:
        yield from (*everything.kept(peers(whole=whole)), "")
    yield from table.notes(peers(whole=whole))


def say(line: str) -> None:
    """Prints at once: an interrupted run keeps its lines, in a file too."""
    print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
