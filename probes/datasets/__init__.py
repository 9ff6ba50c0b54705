"""Data sets by name, one file each; the texts come from a pulled asset, never from this repository.

`load("movie-reviews")`, `load("editorials")`; `DATASETS` lists what there is.
"""

from probes.data import Dataset, TextData
from workbench.core.options import count
from workbench.core.registry import discover

DATASETS = discover("probes.datasets", "DATASET", Dataset)

__all__ = ["DATASETS", "load"]


def load(name: str, *, limit: int | None = None, seed: int = 0) -> TextData:
    """A data set by name; pulls its asset when absent.

    With `limit`, so many rows, as even in their classes as possible, chosen by `seed`.

    Raises:
        UnknownNameError: If there is no such data set; names the nearest.
        AssetError: If its asset has to be fetched, and cannot be.
        FormatError: If its file is not the published one.
        OptionError: If `limit` is less than 1, or `seed` less than 0.
    """
    most = None if limit is None else count("limit", limit)
    data = DATASETS[name].build()
    return data if most is None else data.sample(min(most, len(data)), seed)
