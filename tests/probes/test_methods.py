"""What each probe finds where the best answer is known."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from probes.methods.logistic import Logistic
from probes.methods.mean_difference import MeanDifference
from tests.probes.planted import BAYES, gaussian_pair, labelled
from workbench.core.errors import OptionError


@pytest.mark.parametrize("anisotropic", [False, True])
def test_logistic_reaches_the_bayes_accuracy(anisotropic: bool) -> None:
    x, y, _ = gaussian_pair(2000, 64, anisotropic=anisotropic)
    probe = Logistic().fit(x, y)
    test, truth, _ = gaussian_pair(40_000, 64, anisotropic=anisotropic, seed=1)
    accuracy = float((probe.predict(test) == truth).double().mean())
    assert accuracy == pytest.approx(BAYES, abs=0.01)
    assert probe.inner_accuracy == pytest.approx(BAYES, abs=0.03)


def test_the_raw_mean_difference_loses_where_rows_vary_much_elsewhere() -> None:
    x, y, _ = gaussian_pair(2000, 64, anisotropic=True)
    test, truth, _ = gaussian_pair(40_000, 64, anisotropic=True, seed=1)
    accuracy = float((MeanDifference().fit(x, y).predict(test) == truth).double().mean())
    assert accuracy == pytest.approx(0.67, abs=0.03)


def test_the_pattern_points_along_the_means_and_the_filter_across_the_noise() -> None:
    x, y, delta = gaussian_pair(20_000, 16, anisotropic=True)
    probe = Logistic().fit(x, y)
    pattern = probe.direction("blocks.0.hook_resid_post", kind="pattern").vector.double()
    reading = probe.direction("blocks.0.hook_resid_post", kind="filter").vector.double()
    scale = torch.logspace(0, 2, 16, dtype=torch.double)
    assert float(cosine_similarity(pattern / scale, delta / scale, dim=0)) > 0.99
    assert float(cosine_similarity(reading * scale, delta / scale, dim=0)) > 0.99
    assert float(cosine_similarity(reading, pattern, dim=0)) < 0.5


def test_adding_one_pattern_moves_the_margin_by_one() -> None:
    x, y, _ = gaussian_pair(500, 8)
    probe = Logistic().fit(x, y)
    pattern = probe.direction("blocks.0.hook_resid_post", kind="pattern").vector.double()
    before, after = probe.score(x[:5]), probe.score(x[:5] + pattern)
    margin = (after - before) @ torch.tensor([-1.0, 1.0]).double()
    torch.testing.assert_close(margin, torch.ones(5).double(), atol=1e-5, rtol=0)  # float32 pattern


def test_one_gap_takes_one_mean_to_the_other_along_the_direction() -> None:
    x, y, _ = gaussian_pair(500, 8)
    for kind in ("filter", "pattern"):
        direction = MeanDifference().fit(x, y).direction("blocks.0.hook_resid_post", kind=kind)
        unit = direction.unit_vector.double()
        means = x[y == 1].mean(0) - x[y == 0].mean(0)
        assert direction.gap == pytest.approx(float(means @ unit), rel=1e-5)
        assert direction.sigma == pytest.approx(within(x @ unit, y), rel=1e-5)
        assert direction.norm == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-12)


def within(values: Tensor, y: Tensor) -> float:
    """The pooled standard deviation, class by class."""
    classes = y.unique().tolist()
    squares = [float(values[y == one].var()) * (int((y == one).sum()) - 1) for one in classes]
    return (sum(squares) / (len(y) - len(classes))) ** 0.5


def test_a_sigma_is_the_spread_within_a_class_however_far_the_classes_are_apart() -> None:
    y = torch.arange(4000) % 2
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double()
    for apart in (1.0, 1000.0):
        x = noise + apart * y[:, None]
        for method in (Logistic(), MeanDifference()):
            sigma = method.fit(x, y).direction("hook_embed", kind="pattern").sigma
            assert sigma == pytest.approx(1, abs=0.05)


def test_a_sigma_of_many_classes_and_label_columns_is_each_columns_own() -> None:
    x, y = labelled(300, 5, 3)
    shuffled = y[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    columns = torch.stack([y, shuffled])
    found = MeanDifference().fit_columns(x, columns, torch.arange(300))
    for probe, labels in zip(found, columns, strict=True):
        for label in range(3):
            direction = probe.direction("hook_embed", kind="filter", of=label)
            along = x @ direction.unit_vector.double()
            assert direction.sigma == pytest.approx(within(along, labels), rel=1e-5)


def test_logistic_scores_are_log_odds_of_the_truth() -> None:
    x, y, _ = gaussian_pair(4000, 8)
    test, truth, _ = gaussian_pair(40_000, 8, seed=1)
    p = Logistic().fit(x, y).score(test).softmax(1)[:, 1]
    sure = (p > 0.6) & (p < 0.9)
    assert float(truth[sure].double().mean()) == pytest.approx(float(p[sure].mean()), abs=0.02)


def test_the_penalty_is_the_one_with_the_least_held_out_loss() -> None:
    x, y, _ = gaussian_pair(100, 64)  # few rows of many coordinates want a strong penalty
    few = {c.name: c for c in Logistic().fit(x, y).checks}["penalty"]
    x, y, _ = gaussian_pair(8000, 64)
    many = {c.name: c for c in Logistic().fit(x, y).checks}["penalty"]
    assert few.value > many.value
    assert "inside" in few.note


def test_a_penalty_at_the_edge_of_the_grid_says_so() -> None:
    x, y, _ = gaussian_pair(100, 64)
    check = {c.name: c for c in Logistic(penalties=(1e-3, 1e-4)).fit(x, y).checks}["penalty"]
    assert "edge" in check.note


@pytest.mark.parametrize("method", [Logistic(), MeanDifference()])
def test_many_classes_have_a_direction_each(method: Logistic | MeanDifference) -> None:
    x, y = labelled(400, 6, 3)
    probe = method.fit(x, y)
    assert probe.score(x).shape == (400, 3)
    for label in range(3):
        direction = probe.direction("hook_embed", kind="filter", of=label)
        means = x[y == label].mean(0) - x[y != label].mean(0)
        assert direction.gap == pytest.approx(float(means @ direction.unit_vector.double()))
    with pytest.raises(OptionError, match="of must be a class from 0 to 2, got None"):
        probe.direction("hook_embed")


@pytest.mark.parametrize("method", [Logistic(), MeanDifference()])
def test_rows_that_are_all_equal_tell_nothing_but_how_common_a_class_is(
    method: Logistic | MeanDifference,
) -> None:
    y = (torch.arange(40) % 4 == 0).long()  # a quarter
    for n_classes, labels in ((2, y), (3, y + (torch.arange(40) % 8 == 0))):
        probe = method.fit(torch.ones(40, 6), labels)
        assert torch.equal(probe.predict(torch.ones(3, 6)), probe.predict(torch.zeros(3, 6)))
        assert not bool(probe.direction("hook_embed", of=1).vector.any())
        if isinstance(method, Logistic):
            share = torch.bincount(labels).double() / 40  # the bias alone, and exactly
            said = probe.score(torch.ones(2, 6)).softmax(1)
            torch.testing.assert_close(said, share.expand(2, n_classes), atol=1e-12, rtol=0)
            assert probe.inner_accuracy == float(share.max())


def test_the_direction_of_class_0_is_the_other_way_round() -> None:
    x, y, _ = gaussian_pair(100, 4)
    probe = Logistic().fit(x, y)
    towards, away = (probe.direction("hook_embed", of=label) for label in (1, 0))
    assert torch.equal(towards.vector, -away.vector)
    assert towards.gap == away.gap


@pytest.mark.parametrize("penalties", [(), (1.0, 0.0), (-1.0,)])
def test_penalties_must_be_positive(penalties: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="penalties must be one or more numbers above 0"):
        Logistic(penalties=penalties)
