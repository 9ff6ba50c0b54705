"""The sampler keeps exactly the tokens it must, and draws each row from its own generator."""

import pytest
import torch
from torch import Tensor

from tests import tiny
from workbench.core.errors import OptionError
from workbench.core.sampling import Sampler, generators

HALVES = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()  # tokens 1, 3, 2, 0 from the likeliest
CPU = torch.device("cpu")


def support(sampler: Sampler, logits: Tensor = HALVES, draws: int = 400) -> set[int]:
    """The tokens that are ever drawn."""
    rows = logits.expand(draws, -1)
    return set(sampler.choose(rows, generators(0, draws, CPU)).tolist())


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (None, None, {0, 1, 2, 3}),
        (1, None, {1}),
        (2, None, {1, 3}),
        (99, None, {0, 1, 2, 3}),
        (None, 0.01, {1}),
        (None, 0.49, {1}),
        (None, 0.51, {1, 3}),
        (None, 0.79, {1, 3}),
        (None, 0.81, {1, 2, 3}),
        (None, 1.0, {0, 1, 2, 3}),
        (2, 0.6, {1}),  # of the two that are kept the likelier has 0.625
        (2, 0.64, {1, 3}),
        (3, 0.99, {1, 2, 3}),
    ],
)
def test_it_keeps_what_top_k_and_top_p_say(
    top_k: int | None, top_p: float | None, kept: set[int]
) -> None:
    assert support(Sampler(1.0, top_k, top_p)) == kept


def test_among_equals_it_keeps_k() -> None:
    assert len(support(Sampler(1.0, top_k=2), torch.zeros(1, 6))) == 2
    assert len(support(Sampler(1.0, top_p=0.49), torch.zeros(1, 6))) == 3


def test_draws_follow_the_tempered_probabilities() -> None:
    rows = HALVES.expand(20_000, -1)
    for temperature in (0.5, 1.0, 2.0):
        drawn = Sampler(temperature).choose(rows, generators(0, 20_000, CPU))
        shares = torch.bincount(drawn, minlength=4) / 20_000
        # Five deviations of a share of 20,000 draws.
        tiny.close(shares, (HALVES[0] / temperature).softmax(0), 0.018)


def test_temperature_0_is_the_likeliest_and_draws_nothing() -> None:
    draws = generators(0, 1, CPU)
    before = draws[0].get_state()
    assert Sampler().choose(HALVES, draws).tolist() == [1]
    assert torch.equal(before, draws[0].get_state())


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e300])
def test_extreme_temperatures_overflow_nowhere(temperature: float) -> None:
    logits = torch.tensor([[1e30, 0.0, -1e30, float("-inf")]])
    assert support(Sampler(temperature), logits, 20) <= {0, 1, 2}


def test_a_row_draws_by_its_own_seed_alone() -> None:
    logits = tiny.normal(5, 40)
    together = Sampler(1.0, top_p=0.9).choose(logits, generators([7, 8, 9, 10, 11], 5, CPU))
    for row in range(5):
        alone = Sampler(1.0, top_p=0.9).choose(logits[[row]], generators(7 + row, 1, CPU))
        assert int(alone) == int(together[row])


def test_an_integer_seed_is_one_more_for_each_row() -> None:
    assert [one.initial_seed() for one in generators(7, 3, CPU)] == [7, 8, 9]
    assert [one.initial_seed() for one in generators([5, 1, 5], 3, CPU)] == [5, 1, 5]


@pytest.mark.parametrize("seed", [[1, 2], -1, [0, 1, -1], 2**63 - 2, [2**63, 0, 0]])
def test_seeds_must_be_one_per_row_and_in_range(seed: int | list[int]) -> None:
    with pytest.raises(OptionError, match="seed must be"):
        generators(seed, 3, CPU)


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(OptionError, match=r"temperature must be (0 or more|a finite number)"):
        Sampler(temperature)


@pytest.mark.parametrize("top_p", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(top_p: float) -> None:
    with pytest.raises(OptionError, match=r"top_p must be (above 0 and at most 1|a finite number)"):
        Sampler(1.0, top_p=top_p)


@pytest.mark.parametrize("top_k", [0, -3])
def test_a_count_out_of_range_is_refused(top_k: int) -> None:
    with pytest.raises(OptionError, match="top_k must be 1 or more"):
        Sampler(1.0, top_k=top_k)


def test_the_global_generator_stays_as_it_is() -> None:
    state = torch.random.get_rng_state()
    support(Sampler(1.0))
    assert torch.equal(state, torch.random.get_rng_state())
