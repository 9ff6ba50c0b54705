"""The logistic solver: equal to scikit-learn's, and what its certificate says is so."""

from typing import Any

import pytest
import torch
from torch import Tensor

from probes.basis import basis
from probes.solver import Problems, Solutions, solve
from tests.probes.planted import labelled, one_sided
from workbench.core.errors import ConvergenceError

PENALTIES = (0.05, 2.0, 300.0)
PER_ROW = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # those that the logistic probe tries


def fitted(
    x: Tensor, y: Tensor, penalties: tuple[float, ...], tolerance: float = 1e-8
) -> Solutions:
    own, n_classes = basis(x), int(y.max()) + 1
    labels = y.expand(len(penalties), -1)
    counted = torch.ones(labels.shape, dtype=torch.double)
    penalty = torch.tensor(penalties, dtype=torch.double)
    problems = Problems(own.z, own.scale, labels, counted, penalty, n_classes)
    return solve(problems, tolerance=tolerance)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_weights_equal_those_of_scikit_learn(n_classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = labelled(300, 10, n_classes)
    own = basis(x)
    found = fitted(x, y, PENALTIES, tolerance=1e-16)
    for i, penalty in enumerate(PENALTIES):
        oracle: Any = LogisticRegression(
            C=1 / penalty, tol=1e-10, max_iter=1000, solver="newton-cholesky"
        ).fit(own.z.numpy(), y.numpy())
        torch.testing.assert_close(
            found.weight[i], torch.from_numpy(oracle.coef_), atol=1e-6, rtol=1e-6
        )
        spread = found.bias[i] - torch.from_numpy(oracle.intercept_)  # softmax: up to a constant
        assert float((spread - spread.mean() * (n_classes > 2)).abs().max()) < 1e-6


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_no_fit_is_refused_because_its_bias_still_moves(
    seed: int, n_classes: int, tolerance: float
) -> None:
    x, y = one_sided(n_classes, seed=seed)
    own, penalties = basis(x), tuple(one * len(x) for one in PER_ROW)
    found = fitted(x, y, penalties, tolerance)
    assert bool((found.gap <= tolerance * (1 + found.value)).all())
    exact = [minimum(own.z, y, penalty) for penalty in penalties]
    above = found.value - torch.tensor(exact, dtype=torch.double)
    assert bool((above <= found.gap + 1e-10).all())  # what the certificate says
    assert bool((above >= -1e-10).all())
    for margins in found.margins:
        p = probabilities(margins.T)
        slope = (p - truths(y, n_classes)).sum(0)  # the gap is exact where it is 0
        assert float(slope.abs().max()) < 1e-12 * len(y)


def minimum(z: Tensor, y: Tensor, penalty: float) -> float:
    """The least value of the objective, by scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    oracle: Any = LogisticRegression(
        C=1 / penalty, tol=1e-10, max_iter=1000, solver="newton-cholesky"
    ).fit(z.numpy(), y.numpy())
    margins = z @ torch.from_numpy(oracle.coef_).T + torch.from_numpy(oracle.intercept_)
    loss = -probabilities(margins).log().gather(1, y[:, None]).sum()
    return float(loss) + penalty / 2 * float((oracle.coef_**2).sum())


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_gap_is_primal_minus_dual_and_bounds_the_error(n_classes: int) -> None:
    x, y = labelled(300, 10, n_classes)
    own = basis(x)
    loose, tight = fitted(x, y, PENALTIES, 3e-2), fitted(x, y, PENALTIES, 1e-16)
    for i, penalty in enumerate(PENALTIES):
        margins = own.z @ loose.weight[i].T + loose.bias[i]
        p, truth = probabilities(margins), truths(y, n_classes)
        dual_weight = (truth - p)[:, -loose.bias.shape[1] :].T @ own.z / penalty
        entropy = -(p * p.log()).sum()
        dual = entropy - penalty / 2 * dual_weight.square().sum()
        primal = -(truth * p.log()).sum() + penalty / 2 * loose.weight[i].square().sum()
        assert float(loose.gap[i]) == pytest.approx(float(primal - dual), rel=1e-6, abs=1e-10)
        assert float(primal) == pytest.approx(float(loose.value[i]), rel=1e-12)
        assert 0 <= float(loose.value[i] - tight.value[i]) <= float(loose.gap[i]) * (1 + 1e-9)
    assert float(loose.gap.max()) > 1e-4  # the identity was tried away from the minimum


def probabilities(margins: Tensor) -> Tensor:
    if margins.shape[1] > 1:
        return margins.softmax(1)
    return torch.cat([torch.zeros_like(margins), margins], 1).softmax(1)


def truths(y: Tensor, n_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(y, n_classes).double()


def test_a_row_that_is_not_counted_is_as_if_absent() -> None:
    x, y = labelled(200, 6, 2)
    own, kept = basis(x), torch.arange(200) % 5 != 0
    penalty = torch.tensor([1.0], dtype=torch.double)
    counted = kept.double()[None]
    masked = solve(Problems(own.z, own.scale, y[None], counted, penalty, 2), tolerance=1e-16)
    part = Problems(own.z[kept], own.scale, y[None, kept], counted[:, kept], penalty, 2)
    alone = solve(part, tolerance=1e-16)
    torch.testing.assert_close(masked.weight, alone.weight, atol=1e-8, rtol=0)
    assert masked.margins.shape == (1, 1, 200)


def test_a_batch_equals_its_problems_one_by_one() -> None:
    x, y = labelled(200, 6, 3)
    together = fitted(x, y, PENALTIES, 1e-16)
    for i, penalty in enumerate(PENALTIES):
        alone = fitted(x, y, (penalty,), 1e-16)
        torch.testing.assert_close(together.weight[i], alone.weight[0], atol=1e-7, rtol=1e-7)


def test_separable_rows_converge_because_of_the_penalty() -> None:
    y = torch.arange(40) % 2
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    x[:, 0] = 2.0 * y - 1
    found = fitted(x, y, (1e-4,))
    assert bool(((found.margins[0, 0] > 0) == (y == 1)).all())
    assert float(found.gap[0]) <= 1e-8 * (1 + float(found.value[0]))


def test_a_fit_that_stops_early_raises_and_says_what_to_try() -> None:
    x, y = labelled(200, 6, 2)
    own = basis(x)
    problems = Problems(
        own.z, own.scale, y[None], torch.ones(1, 200).double(), torch.ones(1).double(), 2
    )
    with pytest.raises(ConvergenceError, match=r"1 logistic fits .* after 1 steps.*larger penalty"):
        solve(problems, max_steps=1)
