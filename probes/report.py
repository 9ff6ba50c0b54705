"""The result of a sweep of probes over sites: accuracies, their intervals, and what to beat.

Notable: no number in it is the test score of a site that was chosen by that score. The site is
chosen on inner folds, and `best.accuracy` is that of the whole procedure, choice and all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from probes.method import Kind, Probe
from workbench.core.direction import Direction
from workbench.core.errors import UnknownNameError
from workbench.core.options import index
from workbench.core.provenance import Provenance
from workbench.core.result import Axis, Check, Result, Table
from workbench.core.sites import Site, Sites


@final
@dataclass(frozen=True, eq=False)
class Selection:
    """Choosing the site on inner folds and testing it on the outer one: every row once."""

    accuracy: float
    low: float
    high: float
    sites: Sites  # what each outer fold chose


@final
@dataclass(frozen=True, eq=False)
class Best:
    """The site chosen on inner folds of all rows, and what such a choice is worth.

    `accuracy` and its interval are those of a site chosen without the rows it is tested on.
    `direction` is the pattern at the site; None where there are more than two classes, each of
    which has its own.
    """

    site: Site
    accuracy: float
    low: float
    high: float
    majority: float
    shuffled: float  # 95th percentile, at this site
    bag_of_words: float
    n: int
    direction: Direction | None = field(repr=False)


@final
@dataclass(frozen=True, eq=False, repr=False)
class ProbeReport(Result):
    """Out-of-fold accuracy of a probe at each site, with 95 % intervals over groups.

    `shuffled` are accuracies on shuffled labels, at the hyper-parameters chosen for the real ones.
    """

    axes: tuple[Axis, ...]  # the sites
    sites: Sites
    label_names: tuple[str, ...]
    n_groups: int
    accuracy: Float[Tensor, " site"]
    low: Float[Tensor, " site"]
    high: Float[Tensor, " site"]
    shuffled: Float[Tensor, "site shuffle"]
    majority: float
    bag_of_words: float
    selection: Selection
    inner_accuracy: Float[Tensor, "site fold"]
    right: Bool[Tensor, "site row"]
    folds: Int[Tensor, " row"]
    probes: Mapping[Site, Probe]  # fitted on all rows
    checks: tuple[Check, ...]
    provenance: Provenance
    unit: str = "accuracy"

    @property
    def n(self) -> int:
        """How many texts."""
        return self.right.shape[1]

    @property
    def selected_accuracy(self) -> float:
        """Accuracy of choosing the site on inner folds and testing on outer ones."""
        return self.selection.accuracy

    @property
    def shuffled_95(self) -> Float[Tensor, " site"]:
        """The 95th percentile of the accuracies on shuffled labels."""
        return self.shuffled.quantile(0.95, dim=1)

    @cached_property
    def best(self) -> Best:
        """The site chosen on inner folds, with the accuracy of such a choice."""
        site = max(self.sites, key=lambda one: self.probes[one].inner_accuracy)  # first of equals
        return Best(
            site=site,
            accuracy=self.selection.accuracy,
            low=self.selection.low,
            high=self.selection.high,
            majority=self.majority,
            shuffled=float(self.shuffled_95[self.sites.index(site)]),
            bag_of_words=self.bag_of_words,
            n=self.n,
            direction=self.direction(site) if self.probes[site].n_classes == 2 else None,
        )

    @property
    def earliest(self) -> Site:
        """The first site within one standard error of the best, both by inner folds."""
        inner = {site: self.probes[site].inner_accuracy for site in self.sites}
        most = max(inner.values())
        error = (most * (1 - most) / self.n_groups) ** 0.5
        return next(site for site in self.sites if inner[site] >= most - error)

    def direction(
        self, site: Site | str | None = None, *, kind: Kind = "pattern", of: int | None = None
    ) -> Direction:
        """The direction of the probe fitted on all rows at a site; the best one unless given.

        The "pattern" is the vector to write with, the "filter" the one to read with. It points to
        class `of`: the second of two unless given.

        Raises:
            UnknownNameError: If the sweep has no such site.
            OptionError: If `kind` or `of` is unknown, or `of` is left open with many classes.
        """
        where = self.best.site if site is None else self._own(site)
        towards = dict(enumerate(self.label_names)).get(1 if of is None else index("of", of), "")
        parameters = {**self.provenance.parameters, "site": str(where), "kind": kind}
        return self.probes[where].direction(
            where,
            kind=kind,
            of=of,
            made_by=replace(self.provenance, parameters=parameters),
            label=towards,
        )

    @override
    def values(self) -> Mapping[str, Tensor]:
        return {
            "accuracy": self.accuracy,
            "low": self.low,
            "high": self.high,
            "shuffled": self.shuffled,
            "inner_accuracy": self.inner_accuracy,
            "right": self.right,
            "folds": self.folds,
        }

    @override
    def details(self) -> Mapping[str, Any]:
        return {
            "labels": list(self.label_names),
            "groups": self.n_groups,
            "majority": self.majority,
            "bag_of_words": self.bag_of_words,
            "best": str(self.best.site),
            "selected": [self.selection.accuracy, self.selection.low, self.selection.high],
        }

    @override
    def table(self) -> Table:
        count = len(self.sites)
        return Table(
            {
                "site": list(map(str, self.sites)),
                "accuracy": self.accuracy.tolist(),
                "low": self.low.tolist(),
                "high": self.high.tolist(),
                "majority": [self.majority] * count,
                "shuffled": self.shuffled.mean(1).tolist(),
                "shuffled_95": self.shuffled_95.tolist(),
                "bag_of_words": [self.bag_of_words] * count,
                "n": [self.n] * count,
            }
        )

    @override
    def __repr__(self) -> str:
        best = self.best
        return (
            f"ProbeReport({self.n} texts, {len(self.sites)} sites; {best.site} chosen on inner "
            f"folds, accuracy {best.accuracy:.3f} [{best.low:.3f}, {best.high:.3f}], majority "
            f"{best.majority:.3f})"
        )

    def _own(self, site: Site | str) -> Site:
        found = {str(one): one for one in self.sites}
        if str(site) not in found:
            raise UnknownNameError("site", str(site), found, "The sweep did not read it.")
        return found[str(site)]
