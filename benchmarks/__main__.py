"""`python -m benchmarks`: runs every case and prints the table in Markdown."""

import os
import sys

from benchmarks import cases, everything, sweeps
from benchmarks.harness import markdown, measure
from benchmarks.peers import load


def main() -> None:
    """Prints the table, row by row progress on the error stream."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("WANDB_MODE", "disabled")
    rows = []
    peers = load()
    for case in (*cases.cases(peers), *everything.cases(peers), *sweeps.cases(peers)):
        sys.stderr.write(f"{case.name} …\n")
        rows.append(measure(case))
    sys.stdout.write("\n".join([markdown(rows), "", *map(str, everything.kept(peers))]) + "\n")


if __name__ == "__main__":
    main()
