"""Checkpoints that are wrong, cut off, mislabelled or made to harm: a typed error, soon, and small.

Mutations are drawn by hypothesis, derandomised. Whatever comes, loading ends in a model or in a
`WorkbenchError`; that it takes no more memory than the honest file does is measured.
"""

import copy
import json
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import workbench as wb
from tests import tiny
from tests.families import EXAMPLES, hf
from workbench.core.errors import FormatError, NonFiniteError, WeightsError, WorkbenchError
from workbench.models.checkpoint import INDEX, PICKLED, SINGLE

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
HUGE = 2**40


def saved(kind: str, folder: Path) -> Path:
    """A tiny model's folder."""
    tiny.hf(kind).save_pretrained(folder)
    return folder


def loads_or_says_why(folder: Path) -> WorkbenchError | None:
    """The typed error of loading; any other error fails the test."""
    try:
        model = wb.load(folder, rearrange=False)
    except WorkbenchError as error:
        return error
    assert bool(wb.run(model, [[1, 2]]).logits.isfinite().all())
    return None


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The table and the data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(table: object, data: bytes) -> bytes:
    """A safetensors file of such a table."""
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest folder, from which the others are made."""
    return saved("llama", tmp_path_factory.mktemp("honest"))


def copy_of(honest: Path, folder: Path, content: bytes, config: bytes | None = None) -> Path:
    """The same with other weights, or another config."""
    folder.mkdir(exist_ok=True)
    (folder / SINGLE).write_bytes(content)
    (folder / "config.json").write_bytes(config or (honest / "config.json").read_bytes())
    return folder


# --- one file ---------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
def test_a_file_with_changed_bytes_is_read_or_a_typed_error(
    honest: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    draws, content = random.Random(seed), bytearray((honest / SINGLE).read_bytes())
    length = int.from_bytes(content[:8], "little")
    for _ in range(draws.randint(1, 4)):  # most of them in the header, where they do most
        content[draws.randrange(8 + length if draws.random() < 0.9 else len(content))] = (
            draws.randrange(256)
        )
    with tiny.unchecked():
        loads_or_says_why(copy_of(honest, tmp_path_factory.mktemp("x"), bytes(content)))


LIES: dict[str, Callable[[dict[str, Any], str], object]] = {
    "a wider shape": lambda entry, name: entry["shape"].__setitem__(0, entry["shape"][0] + 1),
    "another order": lambda entry, name: entry["shape"].reverse(),
    "one axis": lambda entry, name: entry.update(shape=[entry["shape"][0] * entry["shape"][1]]),
    "a huge shape": lambda entry, name: entry.update(shape=[HUGE, HUGE]),
    "a negative shape": lambda entry, name: entry.update(shape=[-1, -1]),
    "a shape of 0": lambda entry, name: entry.update(shape=[0, HUGE]),
    "many axes": lambda entry, name: entry.update(shape=[1] * 5000),
    "another dtype": lambda entry, name: entry.update(dtype="I32"),
    "no dtype": lambda entry, name: entry.update(dtype="F33"),
    "offsets elsewhere": lambda entry, name: entry.update(data_offsets=[0, HUGE]),
    "offsets of others": lambda entry, name: entry.update(data_offsets=[0, 4]),
    "offsets backwards": lambda entry, name: entry["data_offsets"].reverse(),
    "fractions": lambda entry, name: entry.update(shape=[0.5, 2]),
    "a table": lambda entry, name: entry.update(shape={}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_lies_about_itself_is_refused(lie: str, honest: Path, tmp_path: Path) -> None:
    table, data = header_of((honest / SINGLE).read_bytes())
    name = "model.layers.1.mlp.up_proj.weight"
    LIES[lie](table[name], name)
    error = loads_or_says_why(copy_of(honest, tmp_path / "x", with_header(table, data)))
    assert isinstance(error, WeightsError)


def test_tensors_may_not_lie_over_one_another(honest: Path, tmp_path: Path) -> None:
    table, data = header_of((honest / SINGLE).read_bytes())
    one, other = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    table[one]["data_offsets"] = list(table[other]["data_offsets"])
    error = loads_or_says_why(copy_of(honest, tmp_path / "x", with_header(table, data)))
    assert isinstance(error, WeightsError)


def test_a_name_that_stands_twice_is_refused(honest: Path, tmp_path: Path) -> None:
    table, data = header_of((honest / SINGLE).read_bytes())
    text = json.dumps(table)
    name = "model.norm.weight"
    doubled = f'{text[:-1]}, "{name}": {json.dumps(table[name])}}}'.encode()
    content = struct.pack("<Q", len(doubled)) + doubled + data
    error = loads_or_says_why(copy_of(honest, tmp_path / "x", content))
    assert isinstance(error, WeightsError)
    assert "stands there twice" in str(error)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("family", list(EXAMPLES))
def test_numbers_that_are_none_are_named(family: str, bad: float, tmp_path: Path) -> None:
    hf(family).save_pretrained(tmp_path)
    weights = load_file(tmp_path / SINGLE)
    name = max(weights, key=lambda one: weights[one].numel())
    weights[name].view(-1)[-1] = bad
    save_file(weights, tmp_path / SINGLE, metadata={"format": "pt"})
    assert isinstance(loads_or_says_why(tmp_path), NonFiniteError)


# --- configs ----------------------------------------------------------------------------------


def numbers_of(config: dict[str, Any]) -> list[str]:
    """The keys under which a config has a whole number."""
    return [key for key, value in config.items() if type(value) is int]


@pytest.mark.parametrize("family", list(EXAMPLES))
@pytest.mark.parametrize("value", [HUGE, 10**30, 0, -1, 1.5, "8", None, [], {}, True, 1e400])
def test_a_config_of_impossible_sizes_is_soon_a_typed_error_or_a_model(
    family: str, value: Any, tmp_path: Path
) -> None:
    hf(family).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tiny.unchecked():
        for key in numbers_of(config):
            file.write_text(json.dumps({**config, key: value}))
            loads_or_says_why(tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200_000, "kilobytes"  # the model has 100 of them


@given(seed=st.integers(0, 10**6))
def test_a_config_with_changed_bytes_is_read_or_a_typed_error(
    honest: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    draws, config = random.Random(seed), bytearray((honest / "config.json").read_bytes())
    for _ in range(draws.randint(1, 3)):
        config[draws.randrange(len(config))] = draws.randrange(256)
    content = (honest / SINGLE).read_bytes()
    folder = copy_of(honest, tmp_path_factory.mktemp("x"), content, bytes(config))
    with tiny.unchecked():
        loads_or_says_why(folder)


def test_deep_json_is_a_typed_error(honest: Path, tmp_path: Path) -> None:
    content = (honest / SINGLE).read_bytes()
    deep = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert isinstance(
        loads_or_says_why(copy_of(honest, tmp_path / "x", content, deep)), FormatError
    )
    broken = struct.pack("<Q", len(deep)) + deep
    assert isinstance(loads_or_says_why(copy_of(honest, tmp_path / "y", broken)), WeightsError)


# --- shards and pickles -----------------------------------------------------------------------


PATHS = ("../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "C:\\x.safetensors")


@kinds
@pytest.mark.parametrize("path", [*PATHS, "", ".", "x.bin", 3, None, "nul\0.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused(kind: str, path: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.hf(kind).save_pretrained(folder, max_shard_size="20KB")
    assert (folder / INDEX).exists()
    assert loads_or_says_why(folder) is None
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = path
    (folder / INDEX).write_text(json.dumps(index))
    assert isinstance(loads_or_says_why(folder), WeightsError)


@pytest.mark.filterwarnings("ignore:TypedStorage")  # torch's own, about its own message
@given(seed=st.integers(0, 10**6))
def test_a_pickle_with_changed_bytes_is_read_or_a_typed_error(
    honest: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("x")
    (folder / "config.json").write_bytes((honest / "config.json").read_bytes())
    torch.save(load_file(honest / SINGLE), folder / PICKLED)
    draws, content = random.Random(seed), bytearray((folder / PICKLED).read_bytes())
    for _ in range(draws.randint(1, 6)):
        content[draws.randrange(min(len(content), 4000))] = draws.randrange(256)
    if draws.random() < 0.2:
        content = content[: draws.randrange(len(content))]
    (folder / PICKLED).write_bytes(content)
    with tiny.unchecked():
        loads_or_says_why(folder)


def test_a_folder_without_a_tokenizer_is_a_model_that_reads_ids_alone(honest: Path) -> None:
    model = wb.load(honest)
    assert model.tokenizer is None
    with pytest.raises(WorkbenchError, match="tokenizer"):
        wb.run(model, "text")


@given(seed=st.integers(0, 10**6))
def test_a_tokenizer_with_changed_bytes_is_read_or_a_typed_error(
    honest: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    folder = copy_of(honest, tmp_path_factory.mktemp("x"), (honest / SINGLE).read_bytes())
    backend = Backend(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(folder / "tokenizer.json"))
    draws = random.Random(seed)
    content = bytearray((folder / "tokenizer.json").read_bytes())
    for _ in range(draws.randint(1, 3)):
        content[draws.randrange(len(content))] = draws.randrange(256)
    (folder / "tokenizer.json").write_bytes(content)
    with tiny.unchecked():
        loads_or_says_why(copy.copy(folder))
