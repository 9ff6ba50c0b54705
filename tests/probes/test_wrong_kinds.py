"""Every argument of the public calls of `probes` refuses what it cannot be, by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import probes
from probes.methods.logistic import Logistic
from probes.methods.mean_difference import MeanDifference
from tests import tiny
from tests.probes.planted import gaussian_pair, letters
from workbench.core.errors import WorkbenchError

pytestmark = pytest.mark.usefixtures("unchecked")
MODEL, DATA, SITE = tiny.model(), letters(24, at=7), "hook_embed"
X, Y, _ = gaussian_pair(24, 3)
GROUPS = torch.arange(24)
PROBE = MeanDifference().fit(X, Y)
REPORT = probes.sweep(MODEL, DATA, SITE, method="mean_difference", n_folds=2, n_shuffles=1)
COLUMNS: dict[str, Any] = {
    "name": "d",
    "texts": ("a", "b"),
    "labels": (0, 1),
    "label_names": ("no", "yes"),
    "groups": (0, 1),
}


def data(**columns: Any) -> Any:
    return probes.TextData(**{**COLUMNS, **columns})


def sweep(**options: Any) -> Any:
    sweeping: Any = probes.sweep
    given = {"data": DATA, "sites": SITE, "method": "mean_difference", "n_folds": 2}
    return sweeping(MODEL, **{**given, "n_shuffles": 1, **options})


def fit(x: Any = X, y: Any = Y, groups: Any = GROUPS) -> Any:
    return MeanDifference().fit(x, y, groups)


MASK = torch.tensor([True, False])
NOT_INDEX: list[Any] = [2.5, object(), {}, True, "3", b"ab", [1.5], [None], MASK, np.array([1.0])]
NOT_NUMBER: list[Any] = [object(), {}, True, "x", b"ab", [1.5], float("nan"), None]
NOT_TEXT: list[Any] = [None, 1.5, [], object(), b"ab"]
NOT_TEXTS: list[Any] = [None, 1.5, "ab", b"ab", (1, 2), ("a", None), {}, object()]
NOT_SEED = [*NOT_INDEX, None, -1, 2**70]
NOT_TENSOR: list[Any] = [None, 1.5, "x", [[1.0]], X.numpy(), X[:, 0], X[None], X > 0, X.long()]
NOT_ROWS = [*NOT_TENSOR, X[:, :0], X[:4], X * float("nan"), X * 1e200]
NOT_COLUMNS: list[Any] = [None, 1, "x", Y.tolist(), Y.numpy(), Y.bool(), Y.double(), Y[:4]]
NOT_LABELS = [*NOT_COLUMNS, Y[None], Y[:0], Y * 0, Y * 2, Y - 1, (GROUPS == 3).long()]
WRONG: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "data name": (lambda v: data(name=v), NOT_TEXT),
    "data texts": (lambda v: data(texts=v), NOT_TEXTS),
    "data labels": (
        lambda v: data(labels=v),
        [None, 1, "01", (False, True), (0.0, 1.0), ("0", "1"), (0, None), (0, 2), (0, -1), (0,)],
    ),
    "data label names": (lambda v: data(label_names=v), NOT_TEXTS),
    "data groups": (
        lambda v: data(groups=v),
        [None, 1, "01", (False, True), (0.0, 1.0), ("a", "b"), ([], []), (0, None), (0,)],
    ),
    "data ratings": (
        lambda v: data(ratings=v),
        [1, "01", (True, False), ("a", "b"), (0.0, float("nan")), (0.0,)],
    ),
    "data subset": (DATA.subset, [*NOT_INDEX, [], [24], [-1], ["x"], 3, None]),
    "data sample": (DATA.sample, [*NOT_INDEX, 0, 25, None]),
    "data sample seed": (lambda v: DATA.sample(4, v), NOT_SEED),
    "datasets name": (probes.datasets.load, [None, 1.5, [], "movie", object()]),
    "sweep model": (
        lambda v: probes.sweep(v, DATA, SITE),
        [None, "smollm2-135m-instruct", 1.5, [], object()],
    ),
    "sweep data": (lambda v: sweep(data=v), [None, "movie-reviews", 1.5, DATA.texts, {}]),
    "sweep sites": (lambda v: sweep(sites=v), [1.5, [], [None], MASK, "block.0"]),
    "sweep method": (lambda v: sweep(method=v), [None, 5, "logstic", [], Logistic, PROBE]),
    "sweep limit": (lambda v: sweep(limit=v), [*NOT_INDEX, 0, -1]),
    "sweep seed": (lambda v: sweep(seed=v), NOT_SEED),
    "sweep folds": (lambda v: sweep(n_folds=v), [*NOT_INDEX, None, 0, 1, 25]),
    "sweep shuffles": (lambda v: sweep(n_shuffles=v), [*NOT_INDEX, None, 0]),
    "sweep progress": (lambda v: sweep(progress=v), [1, "x", []]),
    "sweep check": (lambda v: sweep(check=v), [1, "x", []]),
    "fit rows": (fit, NOT_ROWS),
    "fit labels": (lambda v: fit(y=v), NOT_LABELS),
    "fit groups": (
        lambda v: fit(groups=v),
        [1, "x", GROUPS.tolist(), GROUPS.bool(), GROUPS.double(), GROUPS[:4], GROUPS * 0],
    ),
    "fit columns": (lambda v: Logistic().fit_columns(X, v, GROUPS), [*NOT_COLUMNS, Y]),
    "penalties": (
        lambda v: Logistic(penalties=v),
        [
            *(value for value in NOT_NUMBER if value != [1.5]),
            (),
            (0.0,),
            (-1.0,),
            (True,),
            ("a",),
            (float("inf"),),
        ],
    ),
    "tolerance": (lambda v: Logistic(tolerance=v), [*NOT_NUMBER, 0, -1.0]),
    "logistic inner folds": (lambda v: Logistic(inner_folds=v), [*NOT_INDEX, None, 1]),
    "inner folds": (lambda v: MeanDifference(inner_folds=v), [*NOT_INDEX, None, 1]),
    "probe rows": (PROBE.score, [None, 1.5, X.numpy(), X[0], X[:, :2], X > 0]),
    "probe direction site": (PROBE.direction, [None, 1.5, [], "block.0"]),
    "probe direction kind": (
        lambda v: PROBE.direction(SITE, kind=v),
        [None, 1.5, [], {}, "weights"],
    ),
    "probe direction class": (
        lambda v: PROBE.direction(SITE, of=v),
        [*NOT_INDEX, 2, -1, "yes"],
    ),
    "report direction site": (REPORT.direction, [1.5, [], "block.0"]),
    "report direction kind": (lambda v: REPORT.direction(kind=v), [None, 1.5, [], "weights"]),
    "report direction class": (lambda v: REPORT.direction(of=v), [*NOT_INDEX, 2, -1, "yes"]),
}


@pytest.mark.parametrize("argument", WRONG)
def test_an_argument_refuses_what_it_cannot_be(argument: str) -> None:
    call, values = WRONG[argument]
    for value in values:
        with pytest.raises(WorkbenchError) as caught:
            call(value)
        assert len(str(caught.value)) > 15, (argument, value)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    two, none = np.int64(2), torch.tensor(0)
    assert sweep(n_folds=two, n_shuffles=np.int64(1), seed=none, limit=np.int64(24)).n == 24
    assert data(labels=(np.int64(0), torch.tensor(1))).digest == data().digest
    small = fit(X, Y.to(torch.int8), GROUPS.to(torch.int32))
    assert torch.equal(small.score(X), fit().score(X))


def test_the_calls_above_work_with_what_they_are_meant_for() -> None:
    assert sweep().n == len(DATA)
    assert PROBE.direction(SITE, of=0).norm > 0
    assert REPORT.direction(SITE, kind="filter", of=1).norm > 0
    assert len(DATA.subset([0, 3])) == len(DATA.sample(2, seed=5)) == 2
