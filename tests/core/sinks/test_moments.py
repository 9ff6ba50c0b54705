"""Mean and covariance as NumPy has them from all rows at once, in whatever pieces they came."""

import numpy as np
import pytest
import torch

from tests import tiny
from tests.core.sinks.pushed import SITE, in_pieces, push, where
from workbench.core.errors import EmptySelectionError, OptionError, ShapeError
from workbench.core.sinks import Moments


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moments_are_those_of_numpy(seed: int, dtype: torch.dtype) -> None:
    values = (tiny.normal(60, 7, seed=seed) * torch.arange(1, 8)).to(dtype)
    exact = values.double().numpy()
    for sink in in_pieces(Moments, values, seed):
        found = sink.finish()[SITE]
        assert found.n == 60
        np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.covariance, np.cov(exact.T), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(found.variance, exact.var(0, ddof=1), rtol=1e-12)


def test_a_large_mean_costs_no_precision() -> None:
    values = tiny.normal(4000, 3, dtype=torch.float64)
    sink = push(Moments(), values + 2.0**20, range(4000), [16] * 250)  # exact up to 2^-33
    np.testing.assert_allclose(sink.finish()[SITE].covariance, np.cov(values.T), atol=1e-9)


def test_variances_alone_are_the_diagonal() -> None:
    values = tiny.normal(30, 4)
    whole = push(Moments(), values, range(30), [7, 23]).finish()[SITE]
    sink = push(Moments(covariance=False), values, range(30), [7, 23])
    found = sink.merge(Moments(covariance=False)).finish()[SITE]
    tiny.close(found.variance, whole.covariance.diagonal())
    with pytest.raises(OptionError, match="asked for: Moments"):
        _ = found.covariance
    with pytest.raises(OptionError, match="two sinks of one kind"):
        sink.merge(Moments())


def test_a_single_row_has_a_mean_and_no_spread() -> None:
    values = tiny.normal(1, 4)
    found = push(Moments(), values, [0], [1]).finish()[SITE]
    tiny.close(found.mean, values[0].double())
    with pytest.raises(EmptySelectionError, match="two rows or more, got 1"):
        _ = found.variance


def test_no_rows_add_nothing_and_strange_ones_are_refused() -> None:
    sink = Moments()
    sink.push(SITE, tiny.normal(0, 4), where(torch.arange(0)))
    assert sink.finish() == {}
    push(sink, tiny.normal(2, 4), [0, 1], [2])
    with pytest.raises(ShapeError, match="4 columns"):
        sink.push(SITE, tiny.normal(1, 3), where(torch.tensor([2])))
