"""A probe at every site: where in a model something can be read, and how well beside chance.

Notable: every number is out of fold. Hyper-parameters are chosen inside the training folds, and so
is the site where one has to be chosen.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes import controls
from probes.crossfit import CrossFit, Split, cross_fit, split_of
from probes.data import TextData
from probes.method import METHODS, ProbeMethod
from probes.report import ProbeReport, Selection
from workbench.core.errors import OptionError
from workbench.core.harvest import Progress, harvest
from workbench.core.intervals import grouped_interval
from workbench.core.options import count, expect, index
from workbench.core.protocols import Model
from workbench.core.provenance import Provenance, hyper_parameters, provenance
from workbench.core.reading import ReadPosition, one_per_text
from workbench.core.result import Axis, Check
from workbench.core.run import Check as Cancel
from workbench.core.sites import Selector, Site


def sweep(  # noqa: PLR0913 - what is read where, how it is tested, and how it is watched
    model: Model,
    data: TextData,
    sites: Selector = "blocks.*.hook_resid_post",
    position: ReadPosition = "last",
    method: str | ProbeMethod = "logistic",
    *,
    limit: int | None = None,
    seed: int = 0,
    n_folds: int = 5,
    n_shuffles: int = 20,
    progress: Progress | None = None,
    check: Cancel | None = None,
) -> ProbeReport:
    """How well labels can be read at each site, judged on held-out folds of a grouped split.

    `limit` takes so many texts, as even in their classes as can be; None all of them. Costs one
    forward per text and `n_folds` + 1 fits per site, of which the forwards are the larger part.
    `progress(done, total)` counts texts read, then as many again while probes are fitted; `check`
    is called throughout and may raise to cancel.

    Raises:
        UnknownNameError: If the model lacks one of `sites`, or there is no such method.
        OptionError: If a class has too few groups for `n_folds`, `n_shuffles` or `limit` is below
            1, or an argument is of another kind.
        ConvergenceError: If a fit does not reach its tolerance.
        NonFiniteError: If an activation is not finite.
    """
    expect("model", model, Model, "a model, as wb.load gives")
    expect("data", data, TextData, "a TextData, as probes.datasets.load gives")
    _expect_functions(progress=progress, check=check)
    chosen, limit = _method(method), None if limit is None else count("limit", limit)
    n_folds, n_shuffles = index("n_folds", n_folds), count("n_shuffles", n_shuffles)
    seed = count("seed", seed, least=0)
    position = one_per_text(position)
    used = data if limit is None or limit >= len(data) else data.sample(limit, seed)
    split, total = split_of(used, n_folds, n_shuffles, seed), 2 * len(used)
    reading = None if progress is None else _of(progress, total)
    found = harvest(model, used.texts, sites, position=position, progress=reading, check=check)
    fits: dict[Site, CrossFit] = {}
    for site, x in found.rows.items():
        fits[site] = cross_fit(chosen, x.cpu(), split, check=check)
        if progress is not None:
            progress(len(used) + len(used) * len(fits) // len(found.rows), total)
    parameters = {
        **hyper_parameters(chosen),
        "sites": list(map(str, fits)),
        "position": position,
        "limit": limit,
        "n_folds": n_folds,
        "n_shuffles": n_shuffles,
    }
    name, source = type(chosen).__name__, chosen.source
    made_by = provenance(
        model, method=name, source=source, data=used.digest, parameters=parameters, seed=seed
    )
    return _report(used, split, fits, made_by)


def _method(method: str | ProbeMethod) -> ProbeMethod:
    if isinstance(method, str):
        return METHODS[method]
    return expect("method", method, ProbeMethod, "a name or a value of probes.METHODS")


def _expect_functions(*, progress: Progress | None, check: Cancel | None) -> None:
    for name, function in (("progress", progress), ("check", check)):
        if not (function is None or callable(function)):
            raise OptionError(name, "a function", function)


def _of(progress: Progress, total: int) -> Progress:
    """The same progress, counted against another total."""

    def report(done: int, _: int) -> None:
        progress(done, total)

    return report


def _report(
    data: TextData, split: Split, fits: Mapping[Site, CrossFit], made_by: Provenance
) -> ProbeReport:
    sites, seed = tuple(fits), made_by.seed or 0
    right = torch.stack([fit.right for fit in fits.values()])
    inner = torch.stack([fit.inner_accuracy for fit in fits.values()])
    shuffled = torch.stack([fit.shuffled for fit in fits.values()])
    chosen = inner.argmax(0)  # the site that each fold's own training rows chose
    selected = right.gather(0, chosen[split.fold][None])
    low, high = grouped_interval(torch.cat([right, selected]).double().T, split.groups, seed=seed)
    selection = Selection(
        accuracy=float(selected.double().mean()),
        low=float(low[-1]),
        high=float(high[-1]),
        sites=tuple(sites[index] for index in chosen.tolist()),
    )
    commonest = float(controls.majority(split.y, split.fold).double().mean())
    words = controls.bag_of_words(data.texts, split.y, split.fold)
    gain = _gain(selected[0], words, split, seed)
    return ProbeReport(
        axes=(Axis("site", tuple(map(str, sites))),),
        sites=sites,
        label_names=data.label_names,
        n_groups=len(split.groups.unique()),
        accuracy=right.double().mean(1),
        low=low[:-1],
        high=high[:-1],
        shuffled=shuffled,
        majority=commonest,
        bag_of_words=float(words.double().mean()),
        selection=selection,
        inner_accuracy=inner,
        right=right,
        folds=split.fold,
        probes={site: fit.probe for site, fit in fits.items()},
        checks=(*_checks(selection, commonest, shuffled), gain),
        provenance=made_by,
    )


def _checks(
    selection: Selection, commonest: float, shuffled: Float[Tensor, "site shuffle"]
) -> tuple[Check, ...]:
    interval = f"95 % interval {selection.low:.3f} to {selection.high:.3f}"
    chance = float(shuffled.amax(0).quantile(0.95))
    return (
        Check("selected accuracy", selection.accuracy, "accuracy", f"site chosen too; {interval}"),
        Check("majority", commonest, "accuracy", "always the commonest class"),
        Check("shuffled labels", chance, "accuracy", "95th percentile of the best of all sites"),
    )


def _gain(
    selected: Bool[Tensor, " row"], words: Bool[Tensor, " row"], split: Split, seed: int
) -> Check:
    """What the model's activations add to its words, on the same rows."""
    paired = (selected.double() - words.double() + 1) / 2  # 0, 1/2 or 1: a proportion
    ends = grouped_interval(paired[:, None], split.groups, seed=seed)
    low, high = (2 * float(end) - 1 for end in ends)
    note = f"95 % interval {low:+.3f} to {high:+.3f}; above 0 it is not the words alone"
    return Check("gain over bag of words", float(2 * paired.mean() - 1), "accuracy", note)
