"""Recorded tensors may live in memory-mapped files."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import workbench as wb
from tests import tiny
from workbench.core import spill as spill_file
from workbench.core.errors import OptionError, StorageError

ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10]]
plan = [wb.Intervention("blocks.1.hook_resid_pre", wb.ops.scale(2.0))]


@pytest.mark.parametrize("record", ["all", "blocks.*.attn.hook_*", "hook_unembed"])
def test_a_spilled_trace_is_bit_equal(tmp_path: Path, record: str) -> None:
    spilled = wb.run(tiny.model(), ROWS, plan=plan, record=record, spill=tmp_path / "trace")
    kept = wb.run(tiny.model(), ROWS, plan=plan, record=record)
    assert list(spilled) == list(kept)
    for site in kept:
        assert tiny.same_bytes(spilled[site], kept[site])
    assert tiny.same_bytes(spilled.logits, kept.logits)


def test_what_is_kept_lies_in_mapped_files(tmp_path: Path) -> None:
    trace = wb.run(tiny.model(), ROWS, record="all", spill=tmp_path)
    files = sorted(file.name for file in tmp_path.iterdir())
    streams = [f"stream.{layer}.safetensors" for layer in range(4)]
    assert files == ["batch.safetensors", "plan.json", "plan.safetensors", *streams, "trace.json"]
    maps = Path("/proc/self/maps")
    if maps.exists():  # elsewhere the system does not say
        assert all(str(tmp_path / file) in maps.read_text() for file in streams)
    stored = load_file(tmp_path / "stream.2.safetensors")["stream.2"]
    assert tiny.same_bytes(stored, trace["blocks.1.hook_resid_post"])


def test_sites_are_files_of_their_own(tmp_path: Path) -> None:
    wb.run(tiny.model(), ROWS, record=["hook_embed", "blocks.1.attn.hook_z"], spill=tmp_path)
    names = {"hook_embed.safetensors", "blocks.1.attn.hook_z.safetensors"}
    index = {"batch.safetensors", "trace.json"}
    assert {file.name for file in tmp_path.iterdir()} == names | index


def test_a_folder_that_holds_a_trace_is_left_alone(tmp_path: Path) -> None:
    trace = wb.run(tiny.model(), ROWS, record="all", spill=tmp_path)
    before = trace["blocks.1.attn.hook_z"]
    with pytest.raises(OptionError, match="spill must be an empty folder"):
        wb.run(tiny.model(), [[9, 9]], record="all", spill=tmp_path)
    assert tiny.same_bytes(trace["blocks.1.attn.hook_z"], before)


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"an empty folder, without notes\.txt"):
        wb.run(tiny.model(), ROWS, record="all", spill=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        wb.run(tiny.model(), ROWS, record="all", spill=tmp_path / "file")


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill_file, "write_tensors", full)
    with pytest.raises(StorageError, match=r"stream\.0\.safetensors cannot be written"):
        wb.run(tiny.model(), ROWS, record="all", spill=tmp_path)
