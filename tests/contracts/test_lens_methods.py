"""What every lens keeps to, those to come included."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests import tiny
from workbench.core.errors import OptionError
from workbench.lenses import METHODS, LensMethod

PROMPT = "abcabd"
kinds = pytest.mark.parametrize("kind", tiny.KINDS)


@pytest.fixture(params=list(METHODS))
def lens(request: pytest.FixtureRequest) -> LensMethod:
    """Each lens at its defaults."""
    return METHODS[request.param]


def test_it_cites_its_source(lens: LensMethod) -> None:
    assert lens.source


@kinds
def test_its_reading_has_the_axes_it_says(lens: LensMethod, kind: str) -> None:
    found = lens(tiny.model(kind), PROMPT, watch="x", top_k=3)
    shape = tuple(len(axis.labels) for axis in found.axes)
    assert next(iter(found.values().values())).shape == shape == (3, 6, 3)
    for name, value in found.values().items():
        assert value.shape[:2] == (3, 6), name
        assert bool(value.isfinite().all()), name
    assert bool((found.top_probabilities.diff(dim=-1) <= 0).all())
    assert bool((found.kl > -1e-5).all())


@kinds
def test_it_is_deterministic_and_leaves_the_model_as_it_was(lens: LensMethod, kind: str) -> None:
    model = tiny.model(kind)
    before, state = tiny.digest(model), torch.random.get_rng_state()
    one, other = lens(model, PROMPT, watch="x"), lens(model, PROMPT, watch="x")
    assert all(map(tiny.same_bytes, one.values().values(), other.values().values()))
    assert tiny.digest(model) == before
    assert all(p.grad is None for p in model.stack.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@kinds
def test_threads_share_a_model(lens: LensMethod, kind: str) -> None:
    model, prompts = tiny.model(kind), ["abc", "zyxwv", "hello you", "a"] * 2
    alone = [lens(model, prompt).entropy for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda prompt: lens(model, prompt).entropy, prompts))
    assert all(map(tiny.same_bytes, alone, together))


def test_misspelt_keywords_and_other_sites_are_refused(lens: LensMethod) -> None:
    call: Any = lens
    with tiny.unchecked(), pytest.raises(TypeError, match="topk"):
        call(tiny.model(), PROMPT, topk=3)
    with pytest.raises(OptionError, match="the residual stream"):
        lens(tiny.model(), PROMPT, sites="blocks.0.attn.hook_z")
