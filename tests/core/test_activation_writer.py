"""A store is written whole or not at all, by one writer, and is the same however often stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.core.killed import contents
from workbench.core import activation_writer
from workbench.core.activation_index import FILE, shard_file
from workbench.core.errors import (
    BusyError,
    CancelledError,
    FormatError,
    MismatchError,
    NeverActedError,
    NonFiniteError,
    NotReplayableError,
    OptionError,
    StorageError,
)

ROOT = Path(__file__).parent.parent.parent
TEXTS = ["abcdefgh", "xy", "hello", "zz top", "abc", "q w e r t", "no"] * 3
SITES = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_k"]
ZERO = wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero())


def write(
    folder: Path, texts: Any = TEXTS, sites: Any = SITES, model: Any = None, **options: Any
) -> wb.ActivationStore:
    chosen: dict[str, Any] = {"position": "all", "max_tokens": 24, "shard_bytes": 4000, **options}
    return wb.store_activations(folder, model or tiny.model(), texts, sites, **chosen)


class Stop:
    """Cancels at the call of that number."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        self.left -= 1
        if not self.left:
            raise CancelledError("stopped")


def test_the_rows_are_those_of_a_harvest(tmp_path: Path) -> None:
    for position in ("all", "mean", [0, -1], wb.Spans(((0, 2),) * len(TEXTS), "max")):
        store = write(tmp_path / str(hash(str(position))), position=position)
        whole = wb.harvest(tiny.model(), TEXTS, SITES, position=position)
        for site, rows in whole.rows.items():
            torch.testing.assert_close(store.rows(site), rows, rtol=1e-5, atol=1e-5)
        assert store.where().text.equal(whole.where.text)
        assert store.where().token.equal(whole.where.token)


def test_killed_at_random_it_goes_on_and_ends_bit_equal(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.killed", str(tmp_path), "6"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert sum(outcome["kills"] for outcome in outcomes) >= 6
    assert len({outcome["found"] for outcome in outcomes}) > 1, "killed at one stage only"
    assert all(outcome["kept"] for outcome in outcomes), "a whole shard was lost or made again"
    assert all(outcome["same"] for outcome in outcomes), "not what an undisturbed run writes"


def test_cancelled_it_goes_on_and_tells_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    with pytest.raises(CancelledError):
        write(tmp_path / "part", check=Stop(150))
    with pytest.raises(FormatError, match=r"is unfinished: [1-9]\d* of \d+ shards are there"):
        wb.ActivationStore.open(tmp_path / "part")
    paces = list[wb.Pace]()
    write(tmp_path / "part", progress=paces.append)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert 0 < paces[0].found < paces[0].tokens
    assert (paces[-1].done, paces[-1].tokens) == (len(TEXTS), sum(map(len, TEXTS)))


def test_a_finished_store_costs_no_forward(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, check=Stop(1))


def test_a_deleted_shard_is_made_again(tmp_path: Path) -> None:
    write(tmp_path)
    before = contents(tmp_path)
    shard_file(tmp_path, 1).unlink()
    with pytest.raises(FormatError, match=r"shard_00001\.safetensors has 0 bytes"):
        wb.ActivationStore.open(tmp_path)
    write(tmp_path)
    assert contents(tmp_path) == before


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": tiny.model("gpt2")}, "fingerprint is"),
    "model dtype": ({"model": tiny.model("llama", torch.float64)}, "model_dtype is 'float32'"),
    "texts": ({"texts": [*TEXTS[:-1], "on"]}, "data is"),
    "order of texts": ({"texts": TEXTS[::-1]}, "data is"),
    "sites": ({"sites": SITES[:1]}, "sites is"),
    "position": ({"position": "last"}, "position is 'all', expected 'last'"),
    "plan": ({"plan": [ZERO]}, "plan is"),
    "dtype": ({"dtype": torch.float16}, "dtype is 'float32', expected 'float16'"),
    "batches": ({"max_tokens": 25}, "max_tokens is 24, expected 25"),
    "padding": ({"padding_side": "left"}, "padding_side is 'right', expected 'left'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_harvest_does_not_go_on_with_it(change: str, tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        write(tmp_path, check=Stop(150))
    before = contents(tmp_path)
    options, told = CHANGES[change]
    with pytest.raises(MismatchError, match=told) as caught:
        write(tmp_path, **options)
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == before


def test_a_changed_shard_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        write(tmp_path, check=Stop(150))
    file = shard_file(tmp_path, 0)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"has changed since it was written\. Delete it"):
        write(tmp_path)
    file.unlink()
    write(tmp_path).verify()


def test_a_full_disk_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "whole")
    written, real = list[Path](), activation_writer.write_bytes

    def full(file: Path, content: bytes) -> None:
        written.append(file)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        real(file, content)

    monkeypatch.setattr(activation_writer, "write_bytes", full)
    with pytest.raises(StorageError, match=r"No space left on device\. What was written before"):
        write(tmp_path / "part")
    monkeypatch.undo()
    kept = [shard_file(tmp_path / "part", i) for i in range(2)]
    assert [file.exists() for file in kept] == [True, True]
    write(tmp_path / "part")
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = wb.store_size(tiny.model(), TEXTS, SITES, position="all", shard_bytes=4000)

    def usage(left: int) -> Callable[[object], Any]:
        return lambda _: type("Usage", (), {"free": left})

    monkeypatch.setattr(activation_writer.shutil, "disk_usage", usage(size.bytes - 1))
    with pytest.raises(StorageError, match="GB are to be written"):
        write(tmp_path)
    assert contents(tmp_path) == {}
    monkeypatch.setattr(activation_writer.shutil, "disk_usage", usage(size.bytes))
    write(tmp_path)


def test_the_bytes_are_known_before(tmp_path: Path) -> None:
    for dtype in (None, torch.bfloat16):
        folder = tmp_path / str(dtype)
        size = wb.store_size(
            tiny.model(), TEXTS, SITES, position="all", dtype=dtype, shard_bytes=4000
        )
        store = write(folder, dtype=dtype)
        assert (size.rows, size.shards) == (store.n_rows, len(store.index.shards))
        headers = sum(
            8 + int.from_bytes(content[:8], "little")
            for name, content in contents(folder).items()
            if name != FILE
        )
        total = sum(len(c) for name, c in contents(folder).items() if name != FILE)
        assert size.bytes == total - headers
        assert headers < 1000 * size.shards


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    begun, go = Event(), Event()

    def hold() -> None:
        begun.set()
        assert go.wait(30)

    with ThreadPoolExecutor(1) as pool, tiny.unchecked():
        first = pool.submit(write, tmp_path, check=hold)
        assert begun.wait(30)
        code = (
            "import sys, workbench as wb\n"
            "from workbench.attribution.known_truth import induction\n"
            "try: wb.store_activations(sys.argv[1], induction.build().model, ['abc'], '*post')\n"
            "except wb.WorkbenchError as error: print(type(error).__name__, error)"
        )
        with pytest.raises(BusyError, match="is being written by another process or thread"):
            write(tmp_path)
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        go.set()
        first.result(60)
    assert other.stdout.startswith("BusyError"), other.stderr
    write(tmp_path).verify()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"folder must be empty, or hold an activation store"):
        write(tmp_path)
    with pytest.raises(StorageError, match="cannot be written: File exists"):
        write(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_name_is_a_name_and_a_link_is_not_followed(tmp_path: Path) -> None:
    strange = tmp_path / "a b;$(touch x) %s ü\n'\""
    write(strange).verify()
    wb.ActivationStore.open(str(strange)).verify()
    assert [path.name for path in tmp_path.iterdir()] == [strange.name]
    (victim := tmp_path / "victim").write_bytes(b"mine")
    shard_file(strange, 0).unlink()
    shard_file(strange, 0).symlink_to(victim)
    with pytest.raises(FormatError, match="has changed"):
        write(strange)
    assert victim.read_bytes() == b"mine"


def test_a_dtype_that_cannot_hold_a_row_is_refused(tmp_path: Path) -> None:
    large = [wb.Intervention("blocks.0.hook_resid_post", wb.ops.scale(1e6))]
    with pytest.raises(NonFiniteError, match="as float16: "):
        write(tmp_path, plan=large, dtype=torch.float16)
    with pytest.raises(OptionError, match="dtype must be one of float64"):
        write(tmp_path / "other", dtype=torch.int8)


def test_a_plan_must_be_data_and_must_act(tmp_path: Path) -> None:
    bare = [wb.Intervention("blocks.0.hook_mlp_out", lambda value: value * 0)]
    with pytest.raises(NotReplayableError):
        write(tmp_path, plan=bare)
    idle = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero(), positions="generated")]
    with pytest.raises(NeverActedError):
        write(tmp_path, plan=idle)
    with pytest.raises(FormatError, match="unfinished"):
        wb.ActivationStore.open(tmp_path)
    some = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero(), positions=8)]
    write(tmp_path / "some", plan=some)  # in one text of seven, hence not in every shard
