"""Baselines: what they keep, and what they score where the answer is known."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.controls import bag_of_words, majority, shuffled_labels
from probes.folds import folds

Rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=4, max_size=40)


@given(rows=Rows, seed=st.integers(0, 3))
def test_shuffling_keeps_the_groups_and_the_classes_of_a_fold(
    rows: list[tuple[int, int]], seed: int
) -> None:
    y, groups = torch.tensor(rows).T
    fold = groups % 2
    shuffled = shuffled_labels(y, groups, fold, 3, seed=seed)
    assert shuffled.shape == (3, len(y))
    for labels in shuffled:
        plain = torch.zeros_like(fold)
        for group in groups.unique():
            own, before = labels[groups == group], y[groups == group]
            if len(before.unique()) == 1:
                assert len(own.unique()) == 1
                plain[groups == group] = 1
            else:
                assert int(own.sum()) == int(before.sum())
        firsts = torch.tensor([int((groups == g).nonzero()[0]) for g in groups.unique()])
        for index in (0, 1):  # as many groups of each label as before
            kept = firsts[(fold[firsts] == index) & (plain[firsts] == 1)]
            assert int(labels[kept].sum()) == int(y[kept].sum())
    assert torch.equal(shuffled, shuffled_labels(y, groups, fold, 3, seed=seed))


def test_shuffles_differ_from_the_labels_and_from_one_another() -> None:
    y = torch.arange(100) % 2
    shuffled = shuffled_labels(y, torch.arange(100), torch.arange(100) % 5, 4)
    assert len(torch.cat([y[None], shuffled]).unique(dim=0)) == 5
    agreement = (shuffled == y).double().mean()
    assert 0.4 < float(agreement) < 0.6


def test_the_majority_is_that_of_the_other_folds() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    fold = torch.tensor([0, 0, 1, 1, 0, 0, 1, 0])
    assert majority(y, fold).tolist() == [bool(label) for label in y]  # the other fold says 1
    y = torch.tensor([1, 1, 0, 0])
    assert majority(y, torch.tensor([0, 0, 1, 1])).tolist() == [False] * 4  # anti-correlated


def test_texts_without_a_word_tell_no_more_than_the_commonest_class() -> None:
    y, fold = (torch.arange(60) % 3 == 0).long(), torch.arange(60) % 5
    blanks = [" " * (1 + i) for i in range(60)]
    assert torch.equal(bag_of_words(blanks, y, fold), majority(y, fold))


def test_words_that_give_the_label_away_are_found() -> None:
    y = torch.arange(60) % 2
    texts = [f"word{i % 7} {'good' if label else 'bad'} !" for i, label in enumerate(y.tolist())]
    fold = folds(y, torch.arange(60), 5)
    assert bool(bag_of_words(texts, y, fold).all())
