"""Cross-fitting: each row judged by a probe that never saw its group, and shuffled labels beside.

Notable: real and shuffled labels go through one call, so that they share all that rows decide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.controls import shuffled_labels
from probes.data import TextData, group_numbers
from probes.folds import folds
from probes.method import Probe, ProbeMethod
from workbench.core.errors import OptionError


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Labels, groups and folds that all sites share, and the shuffled labels."""

    y: Int[Tensor, " row"]
    groups: Int[Tensor, " row"]
    fold: Int[Tensor, " row"]
    shuffled: Int[Tensor, "shuffle row"]

    @property
    def n_folds(self) -> int:
        """How many folds."""
        return int(self.fold.max()) + 1


@final
@dataclass(frozen=True, eq=False)
class CrossFit:
    """What cross-fitting at one site gave, and the probe fitted on all rows."""

    right: Bool[Tensor, " row"]
    shuffled: Float[Tensor, " shuffle"]  # accuracies
    inner_accuracy: Float[Tensor, " fold"]
    probe: Probe


def split_of(data: TextData, n_folds: int, n_shuffles: int, seed: int) -> Split:
    """The folds of a data set; equal texts share a group, whatever the data say.

    Raises:
        OptionError: If there is one class only, one with fewer groups than there are folds, or
            one before the last that no text has.
    """
    present = set(data.labels)
    if len(present) < 2:
        raise OptionError("data.labels", "of two classes or more", sorted(present))
    absent = [data.label_names[label] for label in range(max(present)) if label not in present]
    if absent:
        wanted = "of every class; give the absent ones texts, or number the others from 0"
        raise OptionError("data.labels", wanted, f"none of {', '.join(map(repr, absent))}")
    y, groups = torch.tensor(data.labels), torch.tensor(group_numbers(data.texts, data.groups))
    fold = folds(y, groups, n_folds, seed=seed)
    return Split(y, groups, fold, shuffled_labels(y, groups, fold, n_shuffles, seed=seed))


def cross_fit(
    method: ProbeMethod,
    x: Float[Tensor, "row d"],
    split: Split,
    *,
    check: Callable[[], None] | None = None,
) -> CrossFit:
    """Out-of-fold answers of a probe at one site; one fit per fold and one on all rows.

    Raises:
        OptionError: If a training fold lacks a class.
        ConvergenceError: If a fit does not reach its tolerance.
        NonFiniteError: If a row is not finite.
    """
    columns = torch.cat([split.y[None], split.shuffled])
    right = torch.zeros(columns.shape, dtype=torch.bool)
    inner = torch.zeros(split.n_folds, dtype=torch.double)
    for index in range(split.n_folds):
        if check is not None:
            check()
        held_out = split.fold == index
        fitted = method.fit_columns(x[~held_out], columns[:, ~held_out], split.groups[~held_out])
        asked = x[held_out].double()
        said = torch.stack([probe.predict(asked) for probe in fitted])  # column row
        right[:, held_out] = said == columns[:, held_out]
        inner[index] = fitted[0].inner_accuracy
    share = right[1:].double().mean(1)
    return CrossFit(right[0], share, inner, method.fit(x, split.y, split.groups))
