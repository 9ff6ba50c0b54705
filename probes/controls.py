"""What an accuracy must beat: the commonest class, shuffled labels, and the words alone.

Notable: all three use the probe's own folds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def majority(y: Int[Tensor, " row"], fold: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
    """Where the commonest class of the other folds is right."""
    right = torch.zeros(len(y), dtype=torch.bool)
    for held_out in (fold == index for index in fold.unique()):
        right[held_out] = y[held_out] == torch.bincount(y[~held_out]).argmax()
    return right


def shuffled_labels(
    y: Int[Tensor, " row"],
    groups: Int[Tensor, " row"],
    fold: Int[Tensor, " row"],
    n: int,
    *,
    seed: int = 0,
) -> Int[Tensor, "shuffle row"]:
    """The labels, shuffled `n` times among the groups of a fold.

    A group keeps one label where it has one; where its rows differ they are shuffled within it.
    Shuffling inside folds leaves each with its classes, and leaks no count from one to another.
    """
    generator = torch.Generator().manual_seed(seed)
    group = groups.unique(return_inverse=True)[1]
    first = torch.full((int(group.max()) + 1,), len(y)).scatter_reduce(
        0, group, torch.arange(len(y)), "amin"
    )
    differs = torch.zeros(len(first), dtype=torch.long).index_add_(
        0, group, (y != y[first][group]).long()
    )
    plain = first[differs == 0]  # the first row of each group of one label
    labels = y[first].repeat(n, 1)  # shuffle group
    labels[:, differs == 0] = _within(y[plain], fold[plain], n, generator)
    shuffled = labels[:, group]
    mixed = (differs[group] > 0).nonzero()[:, 0]
    shuffled[:, mixed] = _within(y[mixed], group[mixed], n, generator)
    return shuffled


def bag_of_words(
    texts: Sequence[str], y: Int[Tensor, " row"], fold: Int[Tensor, " row"]
) -> Bool[Tensor, " row"]:
    """Where a logistic regression on TF-IDF of single words is right, fitted on the other folds.

    Where those have no word at all (blanks only), it says their commonest class.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    right = majority(y, fold)
    for held_out in (fold == index for index in fold.unique()):
        words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
        model: Any = make_pipeline(words, LogisticRegression(C=3.0, max_iter=1000))
        rest: list[int] = (~held_out).nonzero()[:, 0].tolist()
        asked = held_out.nonzero()[:, 0].tolist()
        if not any(texts[row].strip() for row in rest):
            continue
        model.fit([texts[row] for row in rest], y[rest].numpy())
        said = torch.from_numpy(model.predict([texts[row] for row in asked]))
        right[asked] = y[asked] == said
    return right


def _within(
    labels: Int[Tensor, " unit"], block: Int[Tensor, " unit"], n: int, generator: torch.Generator
) -> Int[Tensor, "shuffle unit"]:
    """Labels moved about inside their blocks, `n` times over."""
    places = block.argsort(stable=True)  # units by block
    jitter = torch.rand(n, len(labels), generator=generator, dtype=torch.double)
    drawn = (block + jitter).argsort(dim=1)  # units by block, in random order inside
    shuffled = torch.empty(n, len(labels), dtype=labels.dtype)
    shuffled[:, places] = labels[drawn]
    return shuffled
