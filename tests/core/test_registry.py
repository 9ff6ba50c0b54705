"""A file of a folder is an extension, by its name, imported when it is looked up."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from workbench.core.errors import UnknownNameError
from workbench.core.registry import Registry, discover


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[str]]:
    """A package of extensions, which must be texts."""
    package = tmp_path / "plugged_in"
    package.mkdir()
    files = {
        "__init__": "",
        "two_words": "METHOD = 'two'",
        "alone": "METHOD = 'one'",
        "_private": "METHOD = 'no'",
        "wrong": "METHOD = 3",
        "empty": "",
        "broken": "1 / 0",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield discover("plugged_in", "METHOD", str)
    for name in [name for name in sys.modules if name.startswith("plugged_in")]:
        del sys.modules[name]


def test_names_are_the_public_files_in_order(folder: Registry[str]) -> None:
    assert list(folder) == ["alone", "broken", "empty", "two_words", "wrong"]
    assert len(folder) == 5


def test_nothing_is_imported_before_it_is_looked_up(folder: Registry[str]) -> None:
    list(folder)
    assert not [name for name in sys.modules if name.startswith("plugged_in.")]
    assert folder["alone"] == "one"
    assert "plugged_in.two_words" not in sys.modules


def test_a_dash_is_an_underscore(folder: Registry[str]) -> None:
    assert folder["two-words"] == folder["two_words"] == "two"


@pytest.mark.parametrize("name", ["allone", "_private", "__init__", "", "alone.x"])
def test_an_unknown_name_names_the_nearest(folder: Registry[str], name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"No plugged in named '{name}'|No plugged_in"):
        folder[name]
    assert folder.get(name) is None
    assert name not in folder


@pytest.mark.parametrize("name", ["wrong", "empty"])
def test_a_file_without_the_right_constant_is_a_type_error(
    folder: Registry[str], name: str
) -> None:
    with pytest.raises(TypeError, match=f"plugged_in.{name}.METHOD is no str"):
        folder[name]


def test_an_error_inside_an_extension_is_its_own(folder: Registry[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        folder["broken"]


def test_it_is_read_only(folder: Registry[str]) -> None:
    with pytest.raises(TypeError, match="item assignment"):
        folder["new"] = "x"  # pyright: ignore[reportIndexIssue]


def test_what_is_no_name_is_an_unknown_one(folder: Registry[str]) -> None:
    table: Any = folder
    for strange in (5, None, ["alone"]):
        with tiny.unchecked(), pytest.raises(UnknownNameError, match="No plugged_in named"):
            table[strange]
        with tiny.unchecked():
            assert strange not in table


def test_one_of_a_folder_is_named_in_the_singular() -> None:
    for package, told in (
        ("workbench.models.families", "No family named 'no'"),
        ("workbench.attribution.methods", "No method named 'no'"),
        ("probes.datasets", "No data set named 'no'"),
    ):
        with pytest.raises(UnknownNameError, match=told):
            discover(package, "X", object)["no"]
