"""Tables in Markdown, line by line as cases finish: whoever interrupts keeps what was measured."""

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.harness import OURS, Case, Row, UnequalError, measure
from benchmarks.peers import Peers

Cases = Callable[[Peers], Iterable[Case]]
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight")
HEAD = (
    *("case", f"{OURS}, ms", "beside", "its ms", "its time / ours", "least to most"),
    *("turns", "largest difference"),
)


def table(cases: Iterable[Case], failed: list[str], most: int | None = None) -> Iterator[str]:
    """A line for each peer of each case; a case whose results differ says so and is `failed`."""
    yield from head(HEAD)
    for case in cases:
        try:
            yield from lines(measure(case, most))
        except UnequalError as error:
            failed.append(case.name)
            yield line(case.name, "NOT EQUAL", str(error), *[""] * (len(HEAD) - 3))
    yield ""


def lines(row: Row) -> Iterator[str]:
    """One line for each peer, or a single one where there is none."""
    ours, turns = milliseconds(row.seconds[OURS]), str(row.turns)
    if not row.ratios:
        yield line(row.name, ours, *[""] * 4, turns, "")
    for peer, ratio in row.ratios.items():
        spread = f"{ratio.low:.2f} to {ratio.high:.2f}" if row.turns > 1 else ""
        median = f"**{ratio.median:.2f}**"
        difference = f"{row.differences[peer]:.1e}" if peer in row.differences else ""
        theirs = milliseconds(row.seconds[peer])
        yield line(row.name, ours, peer, theirs, median, spread, turns, difference)


def head(titles: Iterable[str]) -> Iterator[str]:
    """The first two lines of a table."""
    titles = tuple(titles)
    yield line(*titles)
    yield "|" + "---|" * len(titles)


def line(*cells: str) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def milliseconds(seconds: float) -> str:
    """Three digits and more."""
    return f"{1000 * seconds:.1f}"


def notes(peers: Peers) -> Iterator[str]:
    """What holds for all contestants, and, loudly, who took no part."""
    attention = peers.theirs.config._attn_implementation  # noqa: SLF001 - it has no public name
    yield (
        f"All in inference mode; attention: transformers and nnsight {attention}, TransformerLens "
        "its own eager one (it has no other), ours torch's fused kernel where nobody reads inside "
        "it. No peer's plain forward makes a key-value cache. Garbage is collected before each "
        "turn, not in it."
    )
    if peers.nnsight is None:
        yield ""
        yield "**NNSIGHT IS NOT INSTALLED AND HAS NO LINES HERE; `make bench` installs it.**"
    yield ""


def machine() -> str:
    """What it was measured on, and how."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}, float32, Python "
        f"{platform.python_version()}; {', '.join(map(_versioned, PACKAGES))}."
    )


def busy() -> str:
    """How busy the machine is: a quiet one is at about the number of our threads."""
    one, five, _ = os.getloadavg()
    return f"{one:.1f} (one minute), {five:.1f} (five)"


def _versioned(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} not installed"
