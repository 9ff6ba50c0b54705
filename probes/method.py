"""What a probe is, and what fits one: hyper-parameters as fields, data in the call.

Notable: the fitted thing is another type, so nothing can be asked before it is fitted; the call
validates once; and labels come in columns, so that shuffled ones share all that rows alone decide.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.folds import most_folds
from workbench.core.direction import Direction
from workbench.core.errors import NonFiniteError, OptionError, ShapeError
from workbench.core.options import expect
from workbench.core.provenance import Provenance
from workbench.core.registry import discover
from workbench.core.result import Check
from workbench.core.sites import Site

Kind = Literal["filter", "pattern"]
MINIMUM = 2  # groups of each class: one to fit on, one to choose by


class Probe(ABC):
    """A fitted probe: what it says of rows, and where it can, the direction it found.

    `inner_accuracy` is its accuracy on inner folds at the hyper-parameters it chose there: what a
    site may be chosen by, never a test score.
    """

    n_classes: int
    inner_accuracy: float
    checks: tuple[Check, ...]

    @abstractmethod
    def score(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row class"]:
        """A score for each class; the highest is predicted. A softmax of them is a probability."""

    @abstractmethod
    def direction(
        self,
        site: Site | str,
        *,
        kind: Kind = "filter",
        of: int | None = None,
        made_by: Provenance | None = None,
        label: str = "",
    ) -> Direction:
        """The direction that points to class `of`, at the site its rows came from.

        A "filter" is how the class is read; a "pattern" is how the rows vary with what is read,
        and so the vector to write with (Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067).
        With two classes `of` is 1 unless given.

        Raises:
            OptionError: If the kind or the class is unknown, or left open with many classes.
        """

    def predict(self, x: Float[Tensor, "row d"]) -> Int[Tensor, " row"]:
        """The class of each row."""
        return self.score(x).argmax(-1)


class ProbeMethod(ABC):
    """One kind of probe; its fields are its hyper-parameters."""

    source: ClassVar[str]

    @abstractmethod
    def solve(
        self,
        x: Float[Tensor, "row d"],
        columns: Int[Tensor, "column row"],
        groups: Int[Tensor, " row"],
    ) -> Sequence[Probe]:
        """One probe for each column of labels, from checked float64 rows.

        Hyper-parameters are chosen for the first column, on inner folds; the others are controls
        and take the same.
        """

    def fit(
        self,
        x: Float[Tensor, "row d"],
        y: Int[Tensor, " label"],
        groups: Int[Tensor, " group"] | None = None,
    ) -> Probe:
        """The probe of labelled rows; rows of one group stay together in its inner folds.

        Raises:
            ShapeError: If rows, labels and groups differ in number, or are of another kind.
            OptionError: If there is one class only, a class between is missing, or one has fewer
                than two groups.
            NonFiniteError: If a row is not finite, or too large to be squared.
            ConvergenceError: If the fit does not reach its tolerance.
        """
        labels = _whole("y", y, "row")
        own = torch.arange(len(labels)) if groups is None else groups
        return self.fit_columns(x, labels[None], own)[0]

    def fit_columns(
        self,
        x: Float[Tensor, "row d"],
        columns: Int[Tensor, "column label"],
        groups: Int[Tensor, " group"],
    ) -> tuple[Probe, ...]:
        """The probe of the first column of labels, and those of controls tuned as it was.

        Raises:
            ShapeError: If rows, labels and groups differ in number, or are of another kind.
            OptionError: If a column has one class only, lacks one, or has too few groups of one.
            NonFiniteError: If a row is not finite, or too large to be squared.
            ConvergenceError: If a fit does not reach its tolerance.
        """
        x, groups = checked_rows(x).double(), _whole("groups", groups, "row")
        columns = _whole("columns", columns, "column row")
        if not len(x) == columns.shape[1] == len(groups):
            got = f"{len(x)} rows, {columns.shape[1]} labels and {len(groups)} groups"
            raise ShapeError("a probe's data", "as many labels and groups as rows", got)
        for what, values in (("a probe's rows", x), ("a probe's rows, squared", x.square())):
            bad = int((~values.isfinite()).sum())
            if bad:
                raise NonFiniteError(what, bad, x.numel())
        n_classes = _n_classes(columns)
        for column in columns:
            present = column.unique().tolist()
            if len(present) != n_classes:
                raise OptionError("y", f"labels of all {n_classes} classes", present)
        most = most_folds(columns[0], groups)
        if most < MINIMUM:
            raise OptionError(
                "y", f"{MINIMUM} groups or more of each class", f"a class with {most}"
            )
        return tuple(self.solve(x, columns, groups))


def checked_rows(x: Float[Tensor, "row d"], d: int | None = None) -> Float[Tensor, "row d"]:
    """The rows, if they are rows of floats, `d` wide where that is given.

    Raises:
        OptionError: If they are no tensor.
        ShapeError: If they are another tensor.
    """
    expect("x", x, Tensor, "a tensor of rows (row d)")
    wide = x.ndim == len(("row", "d")) and x.shape[1] > 0 and d in (None, x.shape[1])
    if not wide or not x.is_floating_point():
        expected = f"floats of shape (row {'d' if d is None else d})"
        raise ShapeError("a probe's rows", expected, f"{x.dtype} of shape {tuple(x.shape)}")
    return x


def _whole(name: str, values: Tensor, axes: str) -> Tensor:
    """Labels or groups, as 64-bit integers.

    Raises:
        OptionError: If they are no tensor.
        ShapeError: If they are truth values or floats, or have other axes.
    """
    expect(name, values, Tensor, f"a tensor of whole numbers ({axes})")
    whole = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    if not whole or values.ndim != len(axes.split()):
        got = f"{values.dtype} of shape {tuple(values.shape)}"
        raise ShapeError(name, f"whole numbers of shape ({axes})", got)
    return values.long()


def _n_classes(columns: Int[Tensor, "column row"]) -> int:
    if not columns.numel() or int(columns.min()) < 0 or int(columns.max()) < 1:
        got = sorted(set(columns.flatten().tolist()))
        raise OptionError("y", "labels 0, 1, … of two classes or more", got)
    return int(columns.max()) + 1


METHODS = discover("probes.methods", "METHOD", ProbeMethod)
