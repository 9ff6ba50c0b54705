"""Reading model folders: mapped, bounded, and damaged in every way a download can be."""

import json
import logging
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import (
    AssetError,
    FormatError,
    NonFiniteError,
    OptionError,
    UnknownNameError,
    WeightsError,
)
from workbench.models import checkpoint, hub, tables
from workbench.models.checkpoint import check_finite, read_folder, read_weights, resolve
from workbench.models.safetensors_file import MappedTensors, tensor_names

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensors() -> dict[str, Tensor]:
    """Three small tensors of three dtypes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=generator),
        "b.weight": torch.randn(5, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0, 2, dtype=torch.int64),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model folder."""
    (tmp_path / "config.json").write_text('{"model_type": "tiny", "eos_token_id": 7}')
    save_file(tensors(), tmp_path / SINGLE)
    return tmp_path


def write_shards(folder: Path, index: Mapping[str, str], shards: Mapping[str, list[str]]) -> None:
    """Weights in several files, and an index that may or may not agree."""
    (folder / SINGLE).unlink(missing_ok=True)
    for file, names in shards.items():
        save_file({name: tensors()[name] for name in names}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_header(file: Path, header: object, n_data: int = 0) -> Path:
    """A safetensors file with a header of the test's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(n_data))
    return file


def equal(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Asserts that both hold the same tensors."""
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0)


# --- one file ---------------------------------------------------------------------------------


def test_a_folder_gives_config_weights_and_ends(folder: Path) -> None:
    read = read_folder(folder)
    assert read.config["model_type"] == "tiny"
    assert read.eos_ids == (7,)
    assert len(read.weights) == 3
    equal(read.weights, tensors())


@pytest.mark.parametrize(
    ("generation", "eos"),
    [({"eos_token_id": [1, 2]}, (1, 2)), ({}, (7,)), ({"eos_token_id": 3}, (3,))],
)
def test_the_generation_config_decides_what_ends_a_text(
    folder: Path, generation: object, eos: tuple[int, ...]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert read_folder(folder).eos_ids == eos


def test_weights_are_views_of_the_mapped_file(folder: Path) -> None:
    weights = read_weights(folder)
    first, second = weights["a.weight"], weights["a.weight"]
    assert first.data_ptr() == second.data_ptr()
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(folder / SINGLE) in mapped.read_text()


def test_writing_into_a_mapped_weight_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / SINGLE).read_bytes()
    read_weights(folder)["a.weight"].zero_()
    assert (folder / SINGLE).read_bytes() == before


@given(share=st.floats(0, 0.999))
def test_a_file_cut_off_anywhere_names_itself_and_both_sizes(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    file = tmp_path_factory.mktemp("cut") / SINGLE
    save_file(tensors(), file)
    whole = file.read_bytes()
    cut = int(len(whole) * share)
    file.write_bytes(whole[:cut])
    with pytest.raises(WeightsError) as caught:
        MappedTensors(file)
    message = str(caught.value)
    assert str(file) in message
    assert f"{cut:,}" in message
    assert "pull or download it again" in message


def test_a_file_with_bytes_too_many_is_refused(folder: Path) -> None:
    with (folder / SINGLE).open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(WeightsError, match=r"expects [\d,]+ bytes, the file has"):
        read_weights(folder)


@pytest.mark.parametrize("length", [0, 2**40, 2**63, 2**64 - 1, 100_000_001])
def test_an_absurd_header_length_is_refused_without_reading_it(tmp_path: Path, length: int) -> None:
    file = tmp_path / SINGLE
    file.write_bytes(struct.pack("<Q", length) + b'{"a":1}')
    with pytest.raises(WeightsError, match=r"cut off or no safetensors|not JSON"):
        tensor_names(file)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"a": {}, "a": {}}',
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": 7, "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "NEW", "shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_that_makes_no_sense_is_a_typed_error(tmp_path: Path, header: object) -> None:
    with pytest.raises(WeightsError, match="damaged"):
        MappedTensors(write_header(tmp_path / SINGLE, header, 4))


def test_extents_that_overlap_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(WeightsError, match="damaged"):
        MappedTensors(write_header(tmp_path / SINGLE, {"a": entry, "b": entry}, 4))


@given(noise=st.binary(max_size=200))
def test_noise_is_a_typed_error(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    file = tmp_path_factory.mktemp("noise") / SINGLE
    file.write_bytes(noise)
    with pytest.raises(WeightsError):
        MappedTensors(file)


def test_an_unknown_tensor_is_a_key_error(folder: Path) -> None:
    with pytest.raises(KeyError, match="nothing"):
        read_weights(folder)["nothing"]


# --- shards -----------------------------------------------------------------------------------

WHOLE = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}


def test_shards_are_one_table(folder: Path) -> None:
    write_shards(folder, WHOLE, {"one.safetensors": ["a.weight"], "two.safetensors": ["b.weight"]})
    weights = read_weights(folder)
    assert len(weights) == 2
    equal(weights, {name: tensors()[name] for name in WHOLE})


@pytest.mark.parametrize(
    "shard",
    ["../one.safetensors", "/one.safetensors", "..\\one.safetensors", "C:\\x.safetensors", "", 7],
)
def test_an_index_may_not_lead_outside_its_folder(folder: Path, shard: str) -> None:
    save_file({"a.weight": tensors()["a.weight"]}, folder.parent / "one.safetensors")
    write_shards(folder, {"a.weight": shard}, {})
    with pytest.raises(WeightsError, match="outside the folder"):
        read_weights(folder)


def test_an_index_of_safetensors_may_not_name_a_pickle(folder: Path) -> None:
    write_shards(folder, {"a.weight": "one.bin"}, {})
    with pytest.raises(WeightsError, match="another format"):
        read_weights(folder)


@pytest.mark.parametrize(
    ("index", "shards", "problem"),
    [
        (WHOLE, {"one.safetensors": ["a.weight"]}, "two.safetensors is missing"),
        (
            WHOLE,
            {"one.safetensors": ["a.weight"], "two.safetensors": ["empty"]},
            "b.weight: not in two.safetensors",
        ),
        (
            WHOLE,
            {"one.safetensors": ["a.weight", "b.weight"], "two.safetensors": ["b.weight"]},
            "b.weight: in one.safetensors too",
        ),
        ({}, {}, "no weight_map"),
    ],
)
def test_an_index_that_disagrees_with_its_files_is_refused(
    folder: Path, index: dict[str, str], shards: dict[str, list[str]], problem: str
) -> None:
    write_shards(folder, index, shards)
    with pytest.raises(WeightsError, match=problem):
        read_weights(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": []}'])
def test_a_broken_index_is_a_weights_error(folder: Path, text: str) -> None:
    write_shards(folder, {}, {})
    (folder / INDEX).write_text(text)
    with pytest.raises(WeightsError):
        read_weights(folder)


# --- pickles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_read_without_running_code(folder: Path, zipped: bool) -> None:
    (folder / SINGLE).unlink()
    torch.save(tensors(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    equal(read_weights(folder), tensors())


class Evil:
    """What a hostile pickle holds: an object whose loading runs code."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @override
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


def test_a_pickle_that_would_run_code_is_refused_and_does_not(folder: Path) -> None:
    (folder / SINGLE).unlink()
    torch.save({"a": Evil(folder / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="is refused: it holds more than tensors"):
        read_weights(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("held", [[torch.ones(1)], {"a": 1}, {1: torch.ones(1)}])
def test_a_pickle_of_something_else_than_weights_is_refused(folder: Path, held: object) -> None:
    (folder / SINGLE).unlink()
    torch.save(held, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="expected"):
        read_weights(folder)


def test_a_cut_off_pickle_is_a_typed_error(folder: Path) -> None:
    (folder / SINGLE).unlink()
    file = folder / "pytorch_model.bin"
    torch.save(tensors(), file)
    whole = file.read_bytes()
    for cut in range(0, len(whole), len(whole) // 12):
        file.write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match="download it again"):
            read_weights(folder)


def test_sharded_pickles_are_one_table(folder: Path) -> None:
    (folder / SINGLE).unlink()
    torch.save({"a": torch.ones(2)}, folder / "one.bin")
    torch.save({"b": torch.zeros(2)}, folder / "two.bin")
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    equal(read_weights(folder), {"a": torch.ones(2), "b": torch.zeros(2)})


# --- what is missing --------------------------------------------------------------------------


def test_a_folder_without_config_or_weights_says_which(folder: Path) -> None:
    (folder / SINGLE).unlink()
    with pytest.raises(WeightsError, match=r"expected model.safetensors.*there is config.json"):
        read_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"is no model's folder: it has no config\.json"):
        read_folder(folder)
    with pytest.raises(FormatError, match="is not a folder"):
        read_folder(folder / "nowhere")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '"text"'])
def test_a_config_that_is_no_table_is_a_format_error(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(FormatError, match=r"config\.json"):
        read_folder(folder)


def test_a_config_of_absurd_size_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_JSON", 10)
    with pytest.raises(FormatError, match="at most 10 expected"):
        read_folder(folder)


def test_weights_that_are_not_finite_are_named() -> None:
    whole = {"a": torch.ones(3), "ids": torch.arange(3)}
    check_finite(whole)
    with pytest.raises(NonFiniteError, match="b: 1 of 2"):
        check_finite({**whole, "b": torch.tensor([1.0, float("nan")])})


# --- names ------------------------------------------------------------------------------------


def test_a_folder_is_itself(folder: Path) -> None:
    assert resolve(str(folder)) == folder


@pytest.mark.parametrize("name", ["smollm", "gpt2", "model.gguf", "/nowhere/at/all", ""])
def test_an_unknown_name_names_the_nearest_and_what_else_may_be_given(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"(?s)smollm2-135m-instruct.*hub id"):
        resolve(name)


def test_a_data_set_is_no_model_and_says_how_to_load_it() -> None:
    with pytest.raises(UnknownNameError, match=r"probes\.datasets\.load\('cities'\)"):
        resolve("cities")


def test_an_absent_asset_is_pulled_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(checkpoint, "pull", lambda name: tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert resolve("all-minilm-l6-v2") == tmp_path / "all-minilm-l6-v2"
    assert "all-minilm-l6-v2 is not here yet; pulling it once" in caplog.text


def test_a_hub_id_that_cannot_be_fetched_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[object] = []

    def unreachable(hub_id: str, *, revision: str | None, **patterns: list[str]) -> str:
        asked.append(revision)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(AssetError, match=r"'some/model' is no.*no route to host.*network"):
        resolve("some/model")
    with pytest.raises(AssetError, match=r"'some/model' at revision 'step3000' is no"):
        resolve("some/model", "step3000")
    assert asked == [None, "step3000"]


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", ".", "x.gguf"])
def test_only_a_hub_id_has_revisions(name: str) -> None:
    with pytest.raises(OptionError, match=r"revision must be left out.*is no hub id"):
        resolve(name, "main")


def test_a_hub_id_without_safetensors_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda hub_id, **options: str(tmp_path)
    )
    with pytest.raises(WeightsError, match="no safetensors"):
        hub.snapshot("some/model")
    save_file(tensors(), tmp_path / SINGLE)
    assert resolve("some/model") == tmp_path


def test_code_and_pickles_are_never_asked_of_the_hub() -> None:
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in hub.WANTED)


# --- the real model ---------------------------------------------------------------------------


@pytest.mark.asset
def test_mapping_the_default_model_reads_nothing() -> None:
    status = Path("/proc/self/smaps_rollup")
    if not status.exists():
        pytest.skip("memory is counted on Linux only")

    def resident() -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith("Rss:"))
        return int(line.split()[1]) * 1024

    folder = resolve("smollm2-135m-instruct")
    before = resident()
    weights = dict(read_folder(folder).weights)
    n_bytes = sum(weight.nbytes for weight in weights.values())
    assert n_bytes > 500_000_000
    assert resident() - before < 0.1 * n_bytes  # 0.03 measured: headers and page tables
    total = sum(float(weight.sum()) for weight in weights.values())
    assert total == total
    assert resident() - before < 1.1 * n_bytes  # 1.01 measured


def test_a_file_of_weights_is_no_model(folder: Path) -> None:
    with pytest.raises(FormatError, match="is a file; give the model's folder"):
        resolve(str(folder / SINGLE))
