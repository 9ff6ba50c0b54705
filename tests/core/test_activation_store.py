"""A store gives its rows by range, by text, in order or shuffled, and only what is its own."""

import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.activation_index import FILE, shard_file
from workbench.core.activation_store import ActivationStore
from workbench.core.errors import FormatError, MismatchError, OptionError, UnknownNameError

TEXTS = ["abcdefgh", "xy", "hello", "zz top", "abc", "q w e r t", "no"] * 3
SITES = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_k"]
SITE = SITES[0]


def write(folder: Path, **options: Any) -> ActivationStore:
    chosen: dict[str, Any] = {"position": "all", "max_tokens": 24, "shard_bytes": 4000, **options}
    return wb.store_activations(folder, tiny.model(), TEXTS, SITES, **chosen)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return write(tmp_path_factory.mktemp("stores") / "store")


def test_any_range_of_rows_is_a_slice_of_all(store: ActivationStore) -> None:
    whole, where = store.rows(SITE), store.where()
    assert len(store.index.shards) > 3
    assert where.row.tolist() == list(range(store.n_rows))
    with tiny.unchecked():
        for start in range(0, store.n_rows + 1, 4):
            for stop in range(start, store.n_rows + 1, 5):
                assert torch.equal(store.rows(SITE, start, stop), whole[start:stop])
                assert torch.equal(store.where(start, stop).token, where.token[start:stop])
    for start, stop in ((-1, 2), (3, 2), (0, store.n_rows + 1)):
        with pytest.raises(OptionError, match=f"a range within {store.n_rows} rows"):
            store.rows(SITE, start, stop)
    with pytest.raises(UnknownNameError, match="No site named"):
        store.rows("blocks.2.hook_resid_post")


def test_the_rows_of_a_text_are_those_it_was_given(store: ActivationStore) -> None:
    assert store.n_texts == len(TEXTS)
    where = store.where()
    for i, text in enumerate(TEXTS):
        rows = store.of_text(SITE, i)
        assert torch.equal(rows, store.rows(SITE)[where.text == i])
        assert where.token[where.text == i].tolist() == list(text.encode())
    for text in (-1, len(TEXTS)):
        with pytest.raises(OptionError, match=f"below the {len(TEXTS)} texts"):
            store.of_text(SITE, text)


@pytest.mark.parametrize(("size", "stretch", "window"), [(1, 7, 2), (16, 5, 3), (1000, 4096, 8)])
def test_shuffled_gives_every_row_once_in_an_order_of_the_seed(
    store: ActivationStore, size: int, stretch: int, window: int
) -> None:
    def order(seed: int) -> list[int]:
        batches = list(store.shuffled(size, seed=seed, stretch=stretch, window=window))
        sizes = [len(where) for _, where in batches]
        assert all(n == size for n in sizes[:-1])
        for values, where in batches:
            assert list(values) == list(store.sites)
            assert torch.equal(values[store.sites[0]], store.rows(SITE)[where.row])
        return [row for _, where in batches for row in where.row.tolist()]

    one = order(1)
    assert sorted(one) == list(range(store.n_rows))
    assert one == order(1)
    assert one != order(2)
    assert one != sorted(one)


def test_poured_into_sinks_it_is_a_harvest(store: ActivationStore) -> None:
    rows, top, fresh = wb.sinks.Rows(), wb.sinks.TopK(3), wb.sinks.TopK(3)
    store.pour([rows, top], sites=[SITE])
    site = wb.Site.parse(SITE)
    assert list(rows.finish()) == [site]
    assert torch.equal(rows.finish()[site].rows, store.rows(site))
    fresh.push(site, store.rows(site), store.where())
    assert torch.equal(top.finish()[site].row, fresh.finish()[site].row)


def test_it_opens_for_what_it_was_made_of_and_for_nothing_else(store: ActivationStore) -> None:
    model, folder = tiny.model(), store.folder
    made: dict[str, Any] = {
        "model": model,
        "texts": TEXTS,
        "sites": SITES[::-1],
        "position": "all",
        "dtype": torch.float32,
        "plan": (),
    }
    again = ActivationStore.open(folder, **made)
    again.verify()
    other: dict[str, tuple[Any, str]] = {
        "model": (tiny.model("gpt2"), "fingerprint is"),
        "texts": (TEXTS[1:], "data is"),
        "sites": (SITES[0], "sites is"),
        "position": ("mean", "position is 'all', expected 'mean'"),
        "dtype": (torch.float16, "dtype is 'float32', expected 'float16'"),
        "plan": ([wb.Intervention(SITE, wb.ops.zero())], "plan is"),
    }
    for name, (value, told) in other.items():
        with pytest.raises(MismatchError, match=told):
            ActivationStore.open(folder, **{**made, name: value})
    with pytest.raises(OptionError, match="model must be given too"):
        ActivationStore.open(folder, texts=TEXTS)


def test_a_shard_that_is_cut_off_missing_or_foreign_is_told_by_name(tmp_path: Path) -> None:
    store = write(tmp_path)
    file = shard_file(tmp_path, 2)
    content = file.read_bytes()
    harm: dict[str, bytes] = {
        "shard_00002.safetensors has ": content[:-1],
        "has 0 bytes": b"",
        "cannot be read": b"\xff" * 8 + content[8:],
        "is no shard of this store": content.replace(b"blocks.0", b"blocks.2"),
    }
    for told, bytes_now in harm.items():
        file.write_bytes(bytes_now)
        with pytest.raises(FormatError, match=told):
            ActivationStore.open(tmp_path)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FormatError, match=r"shard_00002\.safetensors has changed"):
        ActivationStore.open(tmp_path).verify()
    file.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        store.verify()


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    data = json.loads((tmp_path / FILE).read_text())

    def entry(**changes: Any) -> dict[str, Any]:
        return {**data, "shards": [{**data["shards"][0], **changes}, *data["shards"][1:]]}

    recipe = data["recipe"]
    harm: list[tuple[Any, str]] = [
        ([], "is no index"),
        ({**data, "format": "x"}, "is no index"),
        ({**data, "shards": []}, "is no index"),
        ({**data, "version": 2}, "has version 2"),
        ({**data, "widths": [1]}, "contradicts itself"),
        ({**data, "widths": ["a", 2]}, "contradicts itself"),
        ({**data, "shards": data["shards"][1:]}, "contradicts itself"),
        ({**data, "recipe": {**recipe, "more": 1}}, "its recipe must have"),
        ({**data, "recipe": {**recipe, "dtype": "int8"}}, "known dtypes"),
        ({**data, "recipe": {**recipe, "sites": ["../../x", SITE]}}, "No site named"),
        (entry(texts=[0]), "shard 0 is malformed"),
        (entry(rows=[0, True]), "shard 0 is malformed"),
        (entry(rows=[5, 0]), "shard 0 is malformed"),
        (entry(size="1"), "shard 0 is malformed"),
        (entry(acted=[-1]), "shard 0 is malformed"),
        ("not JSON", "is no activation store"),
    ]
    for wrong, told in harm:
        (tmp_path / FILE).write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
        with pytest.raises(FormatError, match=told):
            ActivationStore.open(tmp_path)
    with pytest.raises(FormatError, match="is no activation store"):
        ActivationStore.open(tmp_path / "nowhere")


def test_a_slice_reads_its_own_bytes_and_no_more(tmp_path: Path) -> None:
    ids = [[i % 250 for i in range(32)] for _ in range(400)]
    store = wb.store_activations(
        tmp_path, tiny.model(), ids, "blocks.0.mlp.hook_post", position="all", max_tokens=12800
    )
    (shard,) = store.index.shards
    site = store.sites[0]
    assert shard.size is not None
    assert shard.size > 2_000_000
    drop = os.open(shard_file(tmp_path, 0), os.O_RDONLY)
    os.posix_fadvise(drop, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(drop)
    whole = store.rows(site)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    some = store.rows(site, 100, 110)
    assert some.untyped_storage().nbytes() >= shard.size // 2  # of the map, not of a copy
    assert some.data_ptr() != whole.data_ptr()
    maps = Path("/proc/self/smaps").read_text()
    mapped = _resident(maps, str(shard_file(tmp_path, 0)))
    some.sum()
    assert mapped < shard.size // 4, "reading a slice made the whole file resident"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < shard.size // 1024


def _resident(maps: str, file: str) -> int:
    """Bytes of a mapped file that are in memory for this process."""
    resident, inside = 0, False
    for line in maps.splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(file)
        elif inside and line.startswith("Rss:"):
            resident += 1024 * int(line.split()[1])
    return resident


def test_threads_read_one_store(store: ActivationStore) -> None:
    whole = store.rows(SITE).clone()

    def read(start: int) -> bool:
        rows = store.rows(SITE, start, start + 10)
        return torch.equal(rows, whole[start : start + 10])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, [i % 90 for i in range(64)]))
