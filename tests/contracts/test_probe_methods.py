"""What every probe keeps to, those to come included."""

import pytest
import torch
from torch import Tensor

from probes.method import METHODS, Probe, ProbeMethod
from tests.probes.planted import BAYES, gaussian_pair, labelled
from workbench.core.direction import Direction
from workbench.core.errors import NonFiniteError, OptionError, ShapeError

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(params=list(METHODS))
def method(request: pytest.FixtureRequest) -> ProbeMethod:
    """Each method at its defaults."""
    return METHODS[request.param]


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    x, y, _ = gaussian_pair(300, 8)
    return x, y


def test_it_reads_a_gaussian_pair(method: ProbeMethod) -> None:
    x, y, _ = gaussian_pair(2000, 8)
    test, truth, _ = gaussian_pair(20_000, 8, seed=1)
    accuracy = (method.fit(x, y).predict(test) == truth).double().mean()
    assert float(accuracy) == pytest.approx(BAYES, abs=0.01)


def test_shuffled_labels_are_chance(method: ProbeMethod) -> None:
    x, y, _ = gaussian_pair(2000, 8)
    shuffled = y[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    probe = method.fit(x, shuffled)
    test = gaussian_pair(2000, 8, seed=1)[0]
    told = torch.arange(2000) // 2 % 2  # knows nothing of the rows
    assert float((probe.predict(test) == told).double().mean()) == pytest.approx(0.5, abs=0.04)
    assert probe.inner_accuracy == pytest.approx(0.5, abs=0.04)


def test_the_same_data_give_the_same_probe(
    method: ProbeMethod, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    one, other = method.fit(x, y), method.fit(x, y)
    assert torch.equal(one.score(x), other.score(x))
    assert one.inner_accuracy == other.inner_accuracy


def test_its_inputs_stay_as_they_are(method: ProbeMethod, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    groups = torch.arange(len(y))
    before = x.clone(), y.clone(), groups.clone()
    probe = method.fit(x, y, groups)
    probe.predict(x)
    assert all(torch.equal(a, b) for a, b in zip((x, y, groups), before, strict=True))
    assert x.grad is None


def test_it_cites_its_source(method: ProbeMethod) -> None:
    assert any(word in method.source for word in ("arXiv", "doi"))


def test_the_order_of_rows_does_not_matter(method: ProbeMethod) -> None:
    x, y, _ = gaussian_pair(600, 4)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(600)
    one, other = method.fit(x, y, groups), method.fit(x[order], y[order], groups[order])
    torch.testing.assert_close(one.score(x), other.score(x), atol=1e-3, rtol=1e-3)


def test_controls_take_what_the_first_column_chose(method: ProbeMethod) -> None:
    x, y, _ = gaussian_pair(300, 4)
    columns = torch.stack([y, 1 - y])
    real, opposite = method.fit_columns(x, columns, torch.arange(300))
    # Only as close as the fits are to their minima.
    flipped = opposite.score(x).flip(1).softmax(1)
    torch.testing.assert_close(real.score(x).softmax(1), flipped, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(real.score(x), method.fit(x, y).score(x), atol=1e-3, rtol=1e-3)


def directions(probe: Probe) -> list[Direction]:
    try:
        return [probe.direction(SITE, kind="filter"), probe.direction(SITE, kind="pattern")]
    except NotImplementedError:  # a probe that is no direction says so
        return []


def test_its_directions_have_sizes_and_steer(
    method: ProbeMethod, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    probe = method.fit(x, y)
    for direction in directions(probe):
        assert str(direction.site) == SITE
        assert all(size > 0 for size in direction.unit_sizes().values())
        moved = x + 4 * direction.sigma * direction.unit_vector.double()
        assert float(probe.predict(moved).double().mean()) > 0.95  # towards class 1
        step = direction.at(2.0, unit="sigma")
        assert step.size == pytest.approx(2 * direction.sigma)


def test_many_classes_have_a_score_each(method: ProbeMethod) -> None:
    x, y = labelled(300, 6, 4)
    probe = method.fit(x, y)
    assert probe.n_classes == 4
    assert probe.score(x).shape == (300, 4)
    assert float((probe.predict(x) == y).double().mean()) > 0.4


@pytest.mark.parametrize("labels", [[0] * 20, [1] * 20, [0, 2] * 10, [-1, 1] * 10])
def test_labels_must_be_of_two_classes_without_a_gap(
    method: ProbeMethod, labels: list[int]
) -> None:
    x = gaussian_pair(20, 3)[0]
    with pytest.raises(OptionError, match="y must be labels"):
        method.fit(x, torch.tensor(labels))


def test_a_class_in_a_single_group_is_refused(method: ProbeMethod) -> None:
    x, y, _ = gaussian_pair(20, 3)
    with pytest.raises(OptionError, match="y must be 2 groups or more of each class"):
        method.fit(x, y, torch.where(y == 1, 99, torch.arange(20)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_refused(method: ProbeMethod, bad: float) -> None:
    x, y, _ = gaussian_pair(20, 3)
    x[3, 1] = bad
    with pytest.raises(NonFiniteError, match="a probe's rows: 1 of 60"):
        method.fit(x, y)


def test_rows_and_labels_must_be_as_many(method: ProbeMethod) -> None:
    x, y, _ = gaussian_pair(20, 3)
    with pytest.raises(ShapeError, match="20 rows, 18 labels and 18 groups"):
        method.fit(x, y[:18])


def test_it_is_exact_on_float32_rows_too(method: ProbeMethod, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    x = x.float()
    assert torch.equal(method.fit(x, y).score(x), method.fit(x.double(), y).score(x))
