"""What every steering method keeps to, those to come included."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.steering import METHODS, Direction, SteeringMethod

SITE = "blocks.1.hook_resid_post"
YES = ["good day", "fine", "so glad!", "well done"]
NO = ["bad", "awful day", "so sad", "oh dear no"]
kinds = pytest.mark.parametrize("kind", tiny.KINDS)


@pytest.fixture(params=list(METHODS))
def method(request: pytest.FixtureRequest) -> SteeringMethod:
    """Each method at its defaults."""
    return METHODS[request.param]


def made(method: SteeringMethod, kind: str) -> Direction:
    return method(tiny.model(kind), positive=YES, negative=NO, site=SITE)


def test_it_cites_its_source(method: SteeringMethod) -> None:
    assert any(word in method.source for word in ("arXiv", "doi"))


@kinds
def test_its_direction_has_sizes_and_a_card(method: SteeringMethod, kind: str) -> None:
    found = made(method, kind)
    assert found.vector.shape == (24,)
    assert not found.vector.requires_grad
    assert all(size > 0 for size in found.unit_sizes().values())
    assert [check.name for check in found.checks] == [
        "held-out d'", "split-half cosine", "p of chance",
    ]  # fmt: skip
    assert found.provenance.source == method.source


def test_it_points_from_negative_to_positive_and_turns_with_them(method: SteeringMethod) -> None:
    rows, along = tiny.normal(60, 24), tiny.normal(24, seed=1)
    yes, no = rows[:30] + 3 * along, rows[30:]
    one, other = method.vector(yes, no), method.vector(no, yes)
    assert float(torch.cosine_similarity(one, along, dim=0)) > 0.9
    assert float(torch.cosine_similarity(one, other, dim=0)) < -0.9


@kinds
def test_it_is_deterministic_and_leaves_the_model_as_it_was(
    method: SteeringMethod, kind: str
) -> None:
    model = tiny.model(kind)
    before, state = tiny.digest(model), torch.random.get_rng_state()
    one, other = made(method, kind), made(method, kind)
    assert tiny.same_bytes(one.vector, other.vector)
    assert one.checks == other.checks
    assert tiny.digest(model) == before
    assert all(p.grad is None for p in model.stack.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@kinds
def test_threads_share_a_model(method: SteeringMethod, kind: str) -> None:
    alone = made(method, kind)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: made(method, kind), range(8)))
    assert all(tiny.same_bytes(alone.vector, one.vector) for one in together)


@kinds
def test_it_steers_both_ways_and_not_at_all(method: SteeringMethod, kind: str) -> None:
    model, found = tiny.model(kind, torch.float64), made(method, kind)
    unit = found.unit_vector.double()
    along = [
        float((wb.run(model, "hello", plan=[found.at(a)], record=[SITE])[SITE] @ unit).mean())
        for a in (-1.0, 0.0, 1.0)
    ]
    steps = [along[1] - along[0], along[2] - along[1]]
    assert steps == pytest.approx([found.gap] * 2, rel=1e-5)


def test_misspelt_keywords_are_refused(method: SteeringMethod) -> None:
    call: Any = method
    kind: Any = type(method)
    with tiny.unchecked(), pytest.raises(TypeError, match="positiv"):
        call(tiny.model(), positiv=YES, negative=NO, site=SITE)
    with tiny.unchecked(), pytest.raises(TypeError, match="strengthh"):
        kind(strengthh=3)
