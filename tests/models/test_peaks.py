"""What loading takes at the most, by the system's own account: little more than the weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import workbench as wb
from tests import tiny
from tests.families import EXAMPLES, hf
from workbench.models.checkpoint import INDEX, SINGLE

MOST = 1.15  # of the weights
BIG: dict[str, dict[str, Any]] = {
    "llama": {
        **tiny.LLAMA,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "head_dim": 128,
        "num_hidden_layers": 8,
        "vocab_size": 1000,
    },
    "gpt2": {**tiny.GPT2, "n_embd": 512, "n_inner": 2048, "n_layer": 8, "n_head": 4},
}
PROGRAM = """
import sys
import workbench as wb

def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024

wb.run(wb.load(sys.argv[1]), [[1, 2, 3]])  # what imports take is no model's
before = peak()
model = wb.load(sys.argv[2])
wb.run(model, [[1, 2, 3]])
print(peak() - before)
"""


def weights_of(folder: Path) -> int:
    """The bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def sharded(folder: Path) -> None:
    """Splits a folder's only file into three."""
    weights = load_file(folder / SINGLE)
    index = {name: f"model-{place % 3}.safetensors" for place, name in enumerate(weights)}
    for file in set(index.values()):
        part = {name: weights[name] for name in weights if index[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    (folder / SINGLE).unlink()


linux = pytest.mark.skipif(sys.platform != "linux", reason="the account is Linux's")


@linux
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("kind", list(BIG))
def test_loading_peaks_at_little_more_than_the_weights(
    kind: str, shards: bool, tmp_path: Path
) -> None:
    hf(kind).save_pretrained(tmp_path / "small")
    big = wb.save(wb.models.new({"model_type": kind, **BIG[kind]}), tmp_path / "big")
    if shards:
        sharded(big)
    assert weights_of(big) > 90e6
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "small"), str(big)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= MOST * weights_of(big), f"{int(done.stdout) / weights_of(big):.2f}"


@linux
@pytest.mark.parametrize("family", list(EXAMPLES))
def test_no_weight_of_a_family_is_copied(family: str, tmp_path: Path) -> None:
    hf(family).save_pretrained(tmp_path)
    model = wb.load(tmp_path, rearrange=False)
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if SINGLE in line]
    areas = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in maps]
    copied = [
        name
        for name, weight in model.stack.named_parameters()
        if not any(start <= weight.data_ptr() < stop for start, stop in areas)
    ]
    assert [name for name in copied if not name.endswith(EXAMPLES[family].copied)] == []
