"""Writes a store in processes that are killed with SIGKILL at random calls; says what came of it.

Run as a program, since a process must not be forked after torch has started threads in it.
"""

import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.attribution.known_truth import induction
from workbench.core.activation_index import FILE, read_index, shard_file

MODEL = induction.build().model
SITES = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
TEXTS = [("fbhadgecfbhad" * 2)[i % 9 : i % 9 + 2 + i % 11] for i in range(23)]
ZERO = wb.Intervention("blocks.0.attn.hook_z", wb.ops.zero(), positions=5)


def write(folder: Path) -> None:
    """The whole store, or what is missing of it."""
    wb.store_activations(
        folder, MODEL, TEXTS, SITES, position="all", plan=[ZERO], max_tokens=20, shard_bytes=20_000
    )


def calls(folder: Path) -> int:
    """How many calls and returns the writing takes."""
    counted = itertools.count()
    sys.setprofile(lambda *_: next(counted) and None)
    write(folder)
    sys.setprofile(None)
    return next(counted)


def is_killed(folder: Path, at: int) -> bool:
    """Whether a child that writes was killed at that call, before it was done."""
    child = os.fork()
    if child == 0:
        counted = itertools.count()

        def strike(*_: object) -> None:
            if next(counted) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(strike)
        write(folder)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finished(folder: Path) -> dict[str, int]:
    """The shards that the index counts as whole, and the files they are."""
    if not (folder / FILE).exists():
        return {}
    files = (
        shard_file(folder, number)
        for number, shard in enumerate(read_index(folder).shards)
        if shard.sha256 is not None
    )
    return {file.name: file.stat().st_ino for file in files}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def outcomes(root: Path, seeds: range) -> Iterator[dict[str, Any]]:
    """What came of each seed's kills."""
    total = calls(root / "whole")
    for seed in seeds:
        draws, folder = random.Random(seed), root / str(seed)
        struck, kept = 0, True
        for _ in range(3):
            before = finished(folder)
            struck += is_killed(folder, draws.randrange(total))
            kept = kept and before.items() <= finished(folder).items()
        before = finished(folder)
        write(folder)
        yield {
            "kills": struck,
            "found": len(before),
            "kept": kept and before.items() <= finished(folder).items(),
            "same": contents(folder) == contents(root / "whole"),
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(list(outcomes(Path(sys.argv[1]), range(int(sys.argv[2]))))))
