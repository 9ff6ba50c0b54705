"""Folds: groups stay whole, classes stay in proportion."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from probes.folds import folds, most_folds
from workbench.core.errors import OptionError

Rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=6, max_size=60)


@given(rows=Rows, n_folds=st.integers(2, 5), seed=st.integers(0, 3))
def test_no_group_is_split_and_every_fold_has_rows(
    rows: list[tuple[int, int]], n_folds: int, seed: int
) -> None:
    y, groups = torch.tensor(rows).T
    y = y.unique(return_inverse=True)[1]  # classes counted from 0
    assume(n_folds <= most_folds(y, groups))
    fold = folds(y, groups, n_folds, seed=seed)
    for group in groups.unique():
        assert len(fold[groups == group].unique()) == 1
    assert sorted(fold.unique().tolist()) == list(range(n_folds))
    assert torch.equal(fold, folds(y, groups, n_folds, seed=seed))


def test_single_rows_are_dealt_evenly_within_each_class() -> None:
    y = (torch.arange(103) % 3 == 0).long()
    fold = folds(y, torch.arange(103), 5)
    for label in (0, 1):
        counts = torch.bincount(fold[y == label], minlength=5)
        assert int(counts.max() - counts.min()) <= 1


def test_documents_of_unlike_sizes_are_balanced() -> None:
    draws = torch.Generator().manual_seed(0)
    groups = torch.randint(40, (600,), generator=draws).sqrt().long() * 7  # few and uneven
    groups = groups + torch.randint(7, (600,), generator=draws)
    y = torch.randint(2, (600,), generator=draws)
    fold = folds(y, groups, 5)
    share = torch.stack([torch.bincount(fold[y == label], minlength=5) for label in (0, 1)])
    assert float((share / share.sum(1, keepdim=True) - 0.2).abs().max()) < 0.03


def test_seeds_deal_otherwise() -> None:
    y, groups = torch.arange(40) % 2, torch.arange(40)
    assert not torch.equal(folds(y, groups, 4, seed=0), folds(y, groups, 4, seed=1))


@pytest.mark.parametrize("n_folds", [1, 4])
def test_more_folds_than_groups_of_a_class_are_refused(n_folds: int) -> None:
    y = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    with pytest.raises(OptionError, match="n_folds must be 2 to 3, the number of groups"):
        folds(y, torch.arange(8), n_folds)


def test_a_class_that_no_row_has_is_none() -> None:
    y, groups = torch.arange(40) % 2, torch.arange(40)
    assert most_folds(2 * y, groups) == most_folds(y, groups) == 20
    assert torch.equal(folds(2 * y, groups, 5), folds(y, groups, 5))
