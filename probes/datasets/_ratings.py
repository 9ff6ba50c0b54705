"""The rated sentences of Hutto and Gilbert (2014), which come with vaderSentiment's source."""

import html
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import final

from probes.data import TextData, group_numbers
from workbench.core.errors import FormatError
from workbench.core.store import read_text
from workbench.models.assets import ASSETS, pull

CITATION = (
    "C.J. Hutto and E. Gilbert (2014). VADER: A Parsimonious Rule-based Model for Sentiment "
    "Analysis of Social Media Text. Eighth International AAAI Conference on Weblogs and Social "
    "Media (ICWSM-14)."
)
HIGHEST = 4.0  # ratings run from -4 to 4
COLUMNS = 3


@final
@dataclass(frozen=True)
class Rating:
    """One sentence and the mean of what its raters said."""

    key: str
    rating: float  # -4 (most negative) to 4 (most positive)
    text: str


def read_ratings(file: Path) -> tuple[Rating, ...]:
    """The rows of a `*_GroundTruth.txt`: tab-separated, no header, HTML entities resolved.

    Raises:
        FormatError: If a row is not id, rating from -4 to 4, and text.
    """
    lines = read_text(file).removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").split("\n")
    numbered = [(place, line.rstrip("\r")) for place, line in enumerate(lines, start=1)]
    return tuple(_row(file, place, line) for place, line in numbered if line)


def _row(file: Path, place: int, line: str) -> Rating:
    key, number, text = (*line.split("\t", COLUMNS - 1), "", "")[:COLUMNS]
    try:
        rating = float(number)
    except ValueError:
        rating = float("nan")
    if not (key and text and isfinite(rating) and abs(rating) <= HIGHEST):
        raise FormatError(
            f"{file}, line {place}: expected id, rating from -4 to 4 and text between tabs, "
            f"got {line!r:.80}; pull the asset again."
        )
    return Rating(key, rating, html.unescape(text))


def polarity(  # noqa: PLR0913 - what tells one of these data sets from the other
    asset: str,
    file: str,
    *,
    least: float,
    n_lines: int,
    n_rows: int,
    n_groups: int,
    by_document: bool,
) -> TextData:
    """The sentences rated at least `least` away from neutral; the label is the rating's sign.

    Raises:
        FormatError: If the counts are not those of the published files.
        AssetError: If the asset has to be fetched, and cannot be.
    """
    rows = read_ratings(pull(asset) / file)
    kept = tuple(row for row in rows if abs(row.rating) >= least)
    texts = tuple(row.text for row in kept)
    keys = [row.key.partition("_")[0] for row in kept] if by_document else None
    groups = group_numbers(texts, keys)
    got = {"lines": len(rows), "rows": len(kept), "groups": len(set(groups))}
    expected = {"lines": n_lines, "rows": n_rows, "groups": n_groups}
    if got != expected:
        raise FormatError(f"{file}: expected {expected}, got {got}; pull {asset!r} again.")
    return TextData(
        name=asset,
        texts=texts,
        labels=tuple(int(row.rating > 0) for row in kept),
        label_names=("negative", "positive"),
        groups=groups,
        licence=ASSETS[asset].licence,
        citation=CITATION,
        ratings=tuple(row.rating for row in kept),
    )
