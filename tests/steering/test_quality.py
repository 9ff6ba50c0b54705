"""The quality card tells a direction from chance, with few texts and in few dimensions too."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests import tiny
from workbench.steering.quality import DRAWS, quality

SEEDS = range(40)
shapes = pytest.mark.parametrize(
    ("texts", "width"), list(itertools.product((4, 5, 8, 16), (4, 24)))
)


def fit(positive: Tensor, negative: Tensor) -> Tensor:
    return positive.mean(0) - negative.mean(0)


def card(positive: Tensor, negative: Tensor) -> dict[str, float]:
    return {check.name: check.value for check in quality(fit, positive, negative)}


def noise(texts: int, width: int, seed: int) -> dict[str, float]:
    rows = tiny.normal(2 * texts, width, seed=seed)
    return card(rows[:texts], rows[texts:])


@pytest.mark.parametrize("texts", [4, 8, 16])
def test_a_planted_direction_is_clear(texts: int) -> None:
    rows = tiny.normal(2 * texts, 24)
    rows[:texts, 0] += 30.0
    found = card(rows[:texts], rows[texts:])
    assert found["held-out d'"] > 8
    assert found["split-half cosine"] > 0.95
    # No relabelling but the same one or, of equally many texts, its mirror.
    same = 2 / math.comb(2 * texts, texts)
    assert found["p of chance"] < 1 / DRAWS + 3 * same + 0.01


def test_d_prime_is_the_distance_in_spreads() -> None:
    """With many texts the direction is known, and a distance of 3 spreads is one."""
    rows = tiny.normal(4000, 8)
    rows[:2000, 0] += 3.0
    assert card(rows[:2000], rows[2000:])["held-out d'"] == pytest.approx(3.0, abs=0.1)


@shapes
def test_on_noise_nothing_is_seen(texts: int, width: int) -> None:
    cards = [noise(texts, width, seed) for seed in SEEDS]
    separation = torch.tensor([one["held-out d'"] for one in cards])
    # The mean of 40, each of a deviation below 1: three deviations of it.
    assert abs(float(separation.mean())) < 0.5
    assert float(separation.std()) < 1.1
    assert float((separation > 2).double().mean()) <= 0.1
    agreement = torch.tensor([one["split-half cosine"] for one in cards])
    assert abs(float(agreement.mean())) < 0.15


@shapes
def test_on_noise_p_is_uniform(texts: int, width: int) -> None:
    values = torch.tensor([noise(texts, width, seed)["p of chance"] for seed in SEEDS])
    for level in (0.1, 0.25, 0.5, 0.75):
        share = float((values <= level).double().mean())
        # A share of 40 draws has a deviation of 0.08 at most: three of them.
        assert share == pytest.approx(level, abs=0.24), level


@pytest.mark.parametrize("texts", [2, 3])
def test_p_is_never_below_what_so_few_texts_can_show(texts: int) -> None:
    """Relabellings that are the same one, or its mirror, lie exactly as far apart."""
    least = 2 / math.comb(2 * texts, texts)
    for seed in SEEDS:
        value = noise(texts, 24, seed)["p of chance"]
        assert value > least - 4 * (least * (1 - least) / DRAWS) ** 0.5, seed


@pytest.mark.parametrize(("yes", "no"), [(2, 2), (3, 3), (3, 20), (20, 3)])
def test_d_prime_is_unknown_of_too_few_texts(yes: int, no: int) -> None:
    checks = quality(fit, tiny.normal(yes, 24) + 5, tiny.normal(no, 24, seed=1))
    assert math.isnan(checks[0].value)
    assert "unknown below 4 texts a side" in checks[0].note
    assert all(math.isfinite(check.value) for check in checks[1:])


def test_far_from_the_origin_nothing_changes() -> None:
    """A mean common to all texts, as the stream has, is not what is judged."""
    rows = tiny.normal(16, 24)
    near, far = card(rows[:8], rows[8:]), card(rows[:8] + 1000, rows[8:] + 1000)
    assert far == pytest.approx(near, abs=2e-2)  # float32 at 1000 keeps 1e-4 of a unit


def test_scale_does_not_matter_and_the_card_is_the_same_again() -> None:
    rows = tiny.normal(16, 24)
    assert card(rows[:8], rows[8:]) == card(rows[:8], rows[8:])
    scaled = card(rows[:8] * 64, rows[8:] * 64)  # a power of two: exact
    assert scaled == pytest.approx(card(rows[:8], rows[8:]), rel=1e-5)


def test_the_card_leaves_rows_and_the_global_generator_alone() -> None:
    rows = tiny.normal(16, 24)
    before, state = rows.clone(), torch.random.get_rng_state()
    card(rows[:8], rows[8:])
    assert torch.equal(rows, before)
    assert torch.equal(state, torch.random.get_rng_state())
