"""Cross-validation folds that never split a group and hold the classes in proportion.

Notable: groups alike in their class counts are dealt like cards, so ten thousand texts cost a few
steps; the same seed gives the same folds everywhere.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.core.errors import OptionError


def folds(
    y: Int[Tensor, " row"], groups: Int[Tensor, " row"], n_folds: int, *, seed: int = 0
) -> Int[Tensor, " row"]:
    """The fold of each row, 0 to n_folds - 1; rows of one group share theirs.

    Raises:
        OptionError: If a class has fewer groups than there are folds.
    """
    most = most_folds(y, groups)
    if most < 2:
        raise OptionError("texts", "of 2 groups or more in each class; take more of them", most)
    if not 2 <= n_folds <= most:
        allowed = f"2 to {most}, the number of groups of the rarest class"
        raise OptionError("n_folds", allowed, n_folds)
    group = groups.unique(return_inverse=True)[1]
    counts = _class_counts(y, group)
    kinds, kind = counts.unique(dim=0, return_inverse=True)
    share = counts.sum(0).double()  # of each class
    load = torch.zeros(n_folds, counts.shape[1], dtype=torch.double)
    fold = torch.zeros(len(counts), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for index in kinds.sum(1).argsort(descending=True, stable=True).tolist():
        members = (kind == index).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        weight = kinds[index] / share
        # The fold least burdened with these classes goes first, the smaller one on a tie.
        burden = (load / share) @ weight + 1e-6 * load.sum(1) / len(y)
        order = burden.argsort(stable=True)
        dealt = order[torch.arange(len(members)) % n_folds]
        fold[members] = dealt
        load += torch.bincount(dealt, minlength=n_folds)[:, None] * kinds[index]
    return fold[group]


def most_folds(y: Int[Tensor, " row"], groups: Int[Tensor, " row"]) -> int:
    """In how many folds every class can have a group: the number of groups of the rarest class.

    A class that no row has is none.
    """
    group = groups.unique(return_inverse=True)[1]
    return int((_class_counts(y, group) > 0).sum(0).min())


def _class_counts(y: Tensor, group: Tensor) -> Int[Tensor, "group class"]:
    y = y.unique(return_inverse=True)[1]  # the classes that there are
    n_groups, n_classes = int(group.max()) + 1, int(y.max()) + 1
    flat = torch.bincount(group * n_classes + y, minlength=n_groups * n_classes)
    return flat.reshape(n_groups, n_classes)
