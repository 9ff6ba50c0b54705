"""Gradients equal finite differences at every site, row by row, and leave nothing behind."""

from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import override

import workbench as wb
from tests import tiny
from workbench.core.errors import NeverActedError, NonFiniteError, ShapeError, UnknownNameError
from workbench.core.metrics import TokenMetric
from workbench.core.sites import Site
from workbench.core.tap import Tap

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
CLEAN, CORRUPT = ["abcde", "xyz"], ["abxde", "xbz"]
CONTRAST = wb.Contrast(clean=CLEAN, corrupt=CORRUPT, target=["f", "g"], foil="h")
METRIC = wb.metrics.logit_difference(CONTRAST)
CUT = wb.Intervention("blocks.1.hook_mlp_out", wb.ops.scale(0.3), positions=[0, -1])
STEP = 1e-6


class Nudge(Tap):
    """Adds a small step along a direction at one site."""

    def __init__(self, site: Site, step: Tensor) -> None:
        self.site, self.step = site, step

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return value + self.step.to(value) if site == self.site else value

    @override
    def wants(self, site: Site) -> bool:
        return site == self.site


def slope(model: wb.Model, metric: Any, site: Site, direction: Tensor, plan: Any) -> Tensor:
    """Central finite difference of the summed metric along a direction."""
    ahead, behind = (
        metric(wb.run(model, CLEAN, plan=plan, tap=Nudge(site, sign * STEP * direction))).sum()
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * STEP)


@kinds
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("plan", [(), (CUT,)], ids=["plain", "steered"])
@pytest.mark.parametrize(
    "metric",
    [METRIC, wb.metrics.log_probability(CONTRAST)],
    ids=["logit_difference", "log_probability"],
)
def test_gradients_are_finite_differences_at_every_site(
    kind: str, plan: tuple[wb.Intervention, ...], metric: wb.Metric
) -> None:
    model = tiny.model(kind, torch.float64)
    found = wb.gradients(model, CLEAN, model.sites, metric, plan=plan)
    assert list(found) == list(model.sites)
    shapes = wb.run(model, CLEAN, record=model.sites)
    for seed, (site, gradient) in enumerate(found.items()):
        assert gradient.shape == shapes[site].shape, site
        direction = tiny.normal(*gradient.shape, seed=seed, dtype=torch.float64)
        expected = slope(model, metric, site, direction, plan)
        tiny.close((gradient * direction).sum(), expected, 1e-6)  # steps of 1e-6 in float64


@kinds
def test_asking_for_more_sites_changes_no_gradient(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    every = wb.gradients(model, CLEAN, model.sites, METRIC)
    for site in ("hook_embed", "blocks.1.attn.hook_z", "blocks.2.hook_resid_post"):
        one = wb.gradients(model, CLEAN, site, METRIC)
        tiny.close(one[Site.parse(site)], every[Site.parse(site)])


@kinds
def test_each_row_holds_the_gradient_of_its_own_example(kind: str) -> None:
    model, site = tiny.model(kind, torch.float64), Site("blocks.{}.hook_resid_pre", 0)
    both = wb.gradients(model, CLEAN, [site], METRIC)[site]
    for row, (clean, corrupt) in enumerate(zip(CLEAN, CORRUPT, strict=True)):
        contrast = wb.Contrast(clean=clean, corrupt=corrupt, target="fg"[row], foil="h")
        alone = wb.gradients(model, clean, [site], wb.metrics.logit_difference(contrast))[site]
        tiny.close(both[row, : len(clean)], alone[0])
    assert bool((both[1, 3:] == 0).all())  # pads


@kinds
def test_a_change_of_the_stream_is_predicted_to_first_order(kind: str) -> None:
    model, site = tiny.model(kind, torch.float64), Site("blocks.{}.hook_resid_post", 1)
    gradient = wb.gradients(model, CLEAN, [site], METRIC)[site]
    vector = tiny.normal(24, dtype=torch.float64)
    base = METRIC(wb.run(model, CLEAN))
    errors = []
    for size in (1e-2, 1e-3):
        push = wb.Intervention(site, wb.ops.add(vector), strength=size)
        effect = METRIC(wb.run(model, CLEAN, plan=[push])) - base
        predicted = size * (gradient @ vector).sum(1)
        errors.append(float((effect - predicted).abs().max()))
    assert errors[1] < errors[0] / 50  # the error falls as the square of the step


@kinds
def test_what_the_plan_replaces_has_gradient_zero_before_and_its_own_after(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    cut = wb.Intervention("blocks.1.hook_resid_pre", wb.ops.set(tiny.normal(24)))
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"]
    found = wb.gradients(model, CLEAN, sites, METRIC, plan=[cut])
    values = [found[Site.parse(site)] for site in sites]
    assert bool((values[0] == 0).all())
    assert bool(values[1].any())
    assert bool(values[2].any())
    alone = wb.gradients(model, CLEAN, sites[0], METRIC, plan=[cut])
    assert bool((alone[Site.parse(sites[0])] == 0).all())


@kinds
def test_gradients_leave_nothing_behind(kind: str) -> None:
    model = tiny.model(kind)
    state, digest = torch.get_rng_state(), tiny.digest(model)
    found = wb.gradients(model, CLEAN, model.sites, METRIC, plan=[CUT])
    assert all(weight.grad is None for weight in model.stack.parameters())
    assert not any(value.requires_grad for value in found.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert tiny.digest(model) == digest
    assert torch.is_grad_enabled()


@kinds
def test_gradients_work_where_the_caller_has_switched_them_off(kind: str) -> None:
    model = tiny.model(kind)
    with torch.no_grad():
        quiet = wb.gradients(model, CLEAN, "hook_embed", METRIC)
    loud = wb.gradients(model, CLEAN, "hook_embed", METRIC)
    assert torch.equal(quiet[Site("hook_embed")], loud[Site("hook_embed")])


def test_what_cannot_be_differentiated_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(UnknownNameError):
        wb.gradients(model, CLEAN, "blocks.9.hook_resid_pre", METRIC)
    with pytest.raises(
        ShapeError, match="logit_difference: expected 2 rows, one per example, got 1"
    ):
        wb.gradients(model, CLEAN[:1], "hook_embed", METRIC)
    late = wb.Intervention("hook_embed", wb.ops.zero(), positions="generated")
    with pytest.raises(NeverActedError):
        wb.gradients(model, CLEAN, "hook_embed", METRIC, plan=[late])


def test_a_gradient_that_is_not_finite_is_named() -> None:
    def root(logits: Tensor, examples: Tensor) -> Tensor:
        return logits[:, 0].sub(logits[:, 0].detach()).abs().sqrt()  # its slope at 0 is infinite

    metric = TokenMetric("root", "logits", 2, torch.tensor([5]), root)
    with pytest.raises(NonFiniteError, match=r"hook_embed: .* values are not finite"):
        wb.gradients(tiny.model(), CLEAN, "hook_embed", metric)
    nan = TokenMetric(
        "nothing", "logits", 2, None, lambda logits, examples: logits[:, 0] * torch.nan
    )
    with pytest.raises(NonFiniteError, match="nothing: 2 of 2 values"):
        wb.gradients(tiny.model(), CLEAN, "hook_embed", nan)
