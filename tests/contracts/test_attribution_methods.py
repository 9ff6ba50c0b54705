"""What every attribution method keeps to, those to come included."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.attribution.examples import ONE, SAME, THREE
from workbench.attribution import METHODS, AttributionMethod
from workbench.core.errors import UnknownNameError

kinds = pytest.mark.parametrize("kind", tiny.KINDS)


@pytest.fixture(params=list(METHODS))
def method(request: pytest.FixtureRequest) -> AttributionMethod:
    """Each method at its defaults."""
    return METHODS[request.param]


def test_it_cites_its_source(method: AttributionMethod) -> None:
    assert any(word in method.source for word in ("arXiv", "doi", ".pub"))


@kinds
def test_its_scores_have_the_axes_it_says(method: AttributionMethod, kind: str) -> None:
    for contrast, count in ((ONE, 1), (THREE, 3)):
        found = method(tiny.model(kind), contrast)
        shape = tuple(len(axis.labels) for axis in found.axes)
        assert found.per_example.shape == (count, *shape)
        assert found.base.shape == found.donor.shape == (count,)
        assert {axis.name for axis in found.axes} <= set(method.offered)
        assert next(iter(found.values().values())).shape == shape
        assert len(found.table()) == found.scores.numel()
        assert (found.kind, found.unit) == (method.kind, "logits")
        assert found.checks


@kinds
def test_base_and_donor_are_plain_runs(method: AttributionMethod, kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    found, metric = method(model, ONE), wb.metrics.logit_difference(ONE)
    ends = [metric(wb.run(model, str(prompt))) for prompt in (ONE.clean, ONE.corrupt)]
    tiny.close(found.base, ends[0])
    tiny.close(found.donor, ends[1])


@kinds
def test_it_is_deterministic_and_leaves_the_model_as_it_was(
    method: AttributionMethod, kind: str
) -> None:
    model = tiny.model(kind)
    before, state = tiny.digest(model), torch.random.get_rng_state()
    one, other = method(model, THREE), method(model, THREE)
    assert tiny.same_bytes(one.per_example, other.per_example)
    assert not one.per_example.requires_grad
    assert tiny.digest(model) == before
    assert all(p.grad is None for p in model.stack.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@kinds
def test_threads_share_a_model(method: AttributionMethod, kind: str) -> None:
    model = tiny.model(kind)
    contrasts = [ONE, THREE] * 4
    alone = [method(model, contrast).per_example for contrast in contrasts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda contrast: method(model, contrast).per_example, contrasts))
    assert all(map(tiny.same_bytes, alone, together))


@kinds
def test_equal_prompts_have_no_effect(method: AttributionMethod, kind: str) -> None:
    if method.kind != "effect":
        pytest.skip("a contribution is of one prompt")
    found = method(tiny.model(kind, torch.float64), SAME)
    tiny.close(found.per_example, torch.zeros_like(found.per_example), 1e-12)


def test_misspelt_keywords_and_sites_are_refused(method: AttributionMethod) -> None:
    call: Any = method
    kind: Any = type(method)
    with tiny.unchecked(), pytest.raises(TypeError, match="axis"):
        call(tiny.model(), ONE, axis=["layer"])
    with tiny.unchecked(), pytest.raises(TypeError, match="stepz"):
        kind(stepz=3)
    with pytest.raises(UnknownNameError, match="No site named"):
        method(tiny.model(), ONE, sites="blocks.*.hook_nothing")
