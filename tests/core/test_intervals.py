"""Confidence intervals: known values, agreement with scipy, and coverage."""

import numpy as np
import pytest
import torch

from workbench.core.errors import EmptySelectionError, OptionError
from workbench.core.intervals import grouped_interval, mean_interval, wilson


def test_wilson_equals_scipys() -> None:
    from scipy.stats import binomtest

    for right, n in ((0, 12), (7, 12), (12, 12), (811, 1000)):
        oracle = binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert wilson(float(right), n) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_an_interval_holds_its_own_estimate_to_the_bit(level: float) -> None:
    for n in range(1, 400):
        assert wilson(0.0, n, level=level)[0] == 0.0
        assert wilson(float(n), n, level=level)[1] == 1.0
        for right in (1, n // 2, n - 1):
            low, high = wilson(float(right), n, level=level)
            assert low <= right / n <= high


def test_single_rows_give_what_scipys_bca_gives() -> None:
    from scipy.stats import bootstrap

    draws = torch.Generator().manual_seed(0)
    values = (torch.rand(150, 1, generator=draws) < 0.85).double()
    low, high = grouped_interval(values, torch.arange(150), n_draws=20_000)
    oracle = bootstrap(
        (values[:, 0].numpy(),),
        np.mean,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    # Draws are multiples of 1/150, and both ends have their own bootstrap noise.
    assert float(low) == pytest.approx(oracle.low, abs=1.5 / 150)
    assert float(high) == pytest.approx(oracle.high, abs=1.5 / 150)


def test_the_interval_covers_the_truth_where_rows_of_a_group_agree() -> None:
    draws = torch.Generator().manual_seed(0)
    simulations, n_groups, size = 300, 40, 8
    shared = torch.randn(n_groups, 1, simulations, generator=draws)
    own = torch.randn(n_groups, size, simulations, generator=draws)
    right = ((shared + own) / 2**0.5 < 0.8416).double()  # latent correlation 0.5, accuracy 0.8
    groups = torch.arange(n_groups).repeat_interleave(size)
    values = right.reshape(n_groups * size, simulations)
    low, high = grouped_interval(values, groups, n_draws=1000)
    covered = float(((low <= 0.8) & (high >= 0.8)).double().mean())
    assert 0.91 <= covered <= 0.98  # .95, with 2.5 standard errors of 300 simulations
    low, high = grouped_interval(values, torch.arange(len(values)), n_draws=1000)
    assert float(((low <= 0.8) & (high >= 0.8)).double().mean()) < 0.85  # groups ignored


def test_all_right_is_an_interval_below_one() -> None:
    low, high = grouped_interval(torch.ones(60, 2), torch.arange(60) // 2)
    expected = wilson(30.0, 30)  # a group is one trial
    assert low.tolist() == pytest.approx([expected[0]] * 2)
    assert high.tolist() == [1.0] * 2


def test_intervals_are_repeatable() -> None:
    values = (torch.arange(30)[:, None] % 3 == 0).double()
    one, other = (grouped_interval(values, torch.arange(30), seed=3) for _ in range(2))
    assert one == other


def test_the_interval_of_a_mean_covers_it_and_knows_equal_rows() -> None:
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(40, 400, generator=draws, dtype=torch.double).exp()  # skewed
    low, high = mean_interval(values)
    covered = float(((low <= np.exp(0.5)) & (high >= np.exp(0.5))).double().mean())
    assert 0.86 <= covered <= 0.96  # .95 is nominal; skew costs some of it at 40 rows
    low, high = mean_interval(torch.full((3, 2), 0.25))
    assert torch.equal(low, torch.full((2,), 0.25))
    assert torch.equal(low, high)


def test_columns_share_their_draws_in_whatever_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    whole = mean_interval(values, n_draws=200)
    monkeypatch.setattr("workbench.core.intervals.COLUMNS", 2)
    for one, other in zip(mean_interval(values, n_draws=200), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)  # sums in another order


def test_no_interval_of_one_row_nor_at_no_level() -> None:
    with pytest.raises(EmptySelectionError, match="needs 2 or more examples, got 1"):
        mean_interval(torch.ones(1, 3))
    with pytest.raises(OptionError, match="level must be between 0 and 1"):
        mean_interval(torch.ones(4, 3), level=1.0)
