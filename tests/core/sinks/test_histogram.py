"""Counts as NumPy has them, exact under any merge, and quantiles between their edges."""

import numpy as np
import pytest
import torch

from tests import tiny
from tests.core.sinks.pushed import SITE, in_pieces, push, where
from workbench.core.errors import OptionError, ShapeError
from workbench.core.sinks import Histogram

EDGES = [-1.0, -0.25, 0.0, 0.5, 2.0]


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_numpy(seed: int) -> None:
    values = tiny.normal(70, 4, seed=seed)
    values[:5, 0] = torch.tensor(EDGES)  # on the edges themselves
    for sink in in_pieces(lambda: Histogram(EDGES), values, seed):
        found = sink.finish()[SITE]
        for column in range(4):
            cells = values[:, column].double().numpy()
            inside = cells[cells < EDGES[-1]]  # NumPy's last bin holds its upper edge too
            assert found.counts[column].tolist() == np.histogram(inside, EDGES)[0].tolist()
            assert int(found.below[column]) == int((cells < EDGES[0]).sum())
            assert int(found.above[column]) == int((cells >= EDGES[-1]).sum())


def test_a_quantile_lies_between_two_edges() -> None:
    values = tiny.normal(99, 3)
    found = push(Histogram(EDGES), values, range(99), [99]).finish()[SITE]
    for share in (0.0, 0.01, 0.3, 0.5, 0.9, 1.0):
        low, high = found.quantile(share)
        exact = values.double().sort(dim=0).values[max(int(np.ceil(share * 99)), 1) - 1]
        assert bool(((low <= exact) & (exact < high)).all())
    with pytest.raises(OptionError, match="share must be between 0 and 1"):
        found.quantile(1.5)


@pytest.mark.parametrize("edges", [[], [1.0], [1.0, 1.0], [2.0, 1.0], [0.0, float("nan")]])
def test_edges_must_rise(edges: list[float]) -> None:
    with pytest.raises(OptionError, match="edges must be"):
        Histogram(edges)


def test_what_does_not_fit_is_refused() -> None:
    sink = push(Histogram(EDGES), tiny.normal(8, 3), range(8), [8])
    with pytest.raises(OptionError, match="same edges"):
        sink.merge(Histogram(torch.tensor([0.0, 1.0])))
    with pytest.raises(ShapeError, match="3 columns"):
        sink.push(SITE, tiny.normal(1, 4), where(torch.tensor([9])))
