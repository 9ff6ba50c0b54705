"""Files are whole: the old one until the new one is complete, and nothing left beside it."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workbench.core.errors import FormatError
from workbench.core.store import read_text, write_bytes, write_json, write_tensors


def broken(*_: object) -> None:
    raise OSError("no space left")


@pytest.mark.parametrize(("module", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_crash_leaves_the_old_file(
    module: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_bytes(file, b"old")
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(file, b"new" * 1000)
    monkeypatch.undo()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file], "something is left beside it"


def test_a_folder_is_made_and_an_old_file_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file"
    for content in (b"one", b""):
        write_bytes(file, content)
        assert file.read_bytes() == content


def test_a_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_bytes(tmp_path / "file", b"")
    modes = [stat.S_IMODE(file.stat().st_mode) for file in (plain, tmp_path / "file")]
    assert modes[0] == modes[1]


def test_readers_see_one_whole_version_while_threads_write(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_bytes(file, b"0" * 10_000)

    def use(which: int) -> bytes:
        write_bytes(file, b"%d" % which * 10_000)
        return file.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        for seen in pool.map(use, range(10)):
            assert len(seen) == 10_000
            assert len(set(seen)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_is_refused_and_writes_nothing(value: object, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match="JSON"):
        write_json(tmp_path / "file", {"value": value})
    assert not (tmp_path / "file").exists()


def test_json_is_readable_text(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"é": [1]})
    assert read_text(tmp_path / "file") == '{\n "é": [\n  1\n ]\n}\n'


def test_tensors_that_share_memory_are_stored_apart(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    write_tensors(tmp_path / "file", {"one": base, "view": base[::2], "empty": base[:0]})
    found = load_file(tmp_path / "file")
    assert torch.equal(found["view"], base[::2])
    assert found["empty"].shape == (0,)


def test_a_text_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    cases: dict[str, str] = {"missing": "does not exist", "bytes": "cannot be read", ".": "read"}
    for name, told in cases.items():
        with pytest.raises(FormatError, match=told):
            read_text(tmp_path / name)
