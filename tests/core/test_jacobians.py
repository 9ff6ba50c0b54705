"""Products of the Jacobian equal finite differences and each other's adjoint, at every site."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import override

import workbench as wb
from tests import tiny
from workbench.core.errors import (
    EmptySelectionError,
    NonFiniteError,
    OptionError,
    ShapeError,
    UnknownNameError,
)
from workbench.core.sites import Site
from workbench.core.tap import Tap

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
CLEAN = ["abcde", "xyz"]
CONTRAST = wb.Contrast(clean=CLEAN, corrupt=["abxde", "xbz"], target=["f", "g"], foil="h")
METRIC = wb.metrics.logit_difference(CONTRAST)
CUT = wb.Intervention("blocks.1.hook_mlp_out", wb.ops.scale(0.3), positions=[0, -1])
EARLY, MIDDLE, LATE = "blocks.0.hook_resid_pre", "blocks.1.attn.hook_k", "blocks.2.hook_mlp_out"
STEP = 1e-6


class Nudge(Tap):
    """Adds a small step along a direction at some sites."""

    def __init__(self, directions: dict[Site, Tensor], size: float) -> None:
        self.directions, self.size = directions, size

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        step = self.directions.get(site)
        return value if step is None else value + self.size * step

    @override
    def wants(self, site: Site) -> bool:
        return site in self.directions


def like(model: wb.Model, site: Site, seed: int, *lead: int) -> Tensor:
    """A random vector at a site."""
    shape = wb.run(model, CLEAN, record=[site])[site].shape
    return tiny.normal(*lead, *shape, seed=seed, dtype=model.dtype)


def difference(
    model: wb.Model, directions: dict[Site, Tensor], read: Callable[[wb.Trace], Tensor], **how: Any
) -> Tensor:
    """Central finite difference along directions."""
    ahead, behind = (
        read(wb.run(model, CLEAN, tap=Nudge(directions, sign * STEP), **how)) for sign in (1, -1)
    )
    return (ahead - behind) / (2 * STEP)


@kinds
@pytest.mark.usefixtures("unchecked")
def test_jvp_is_the_finite_difference_from_every_site(kind: str) -> None:
    plan = (CUT,)
    model = tiny.model(kind, torch.float64)
    end = model.sites[-4]  # the stream after the last block
    for seed, site in enumerate(model.sites):
        if site.short == "attn.hook_attn_scores":
            continue  # masked ones are -inf, on either side
        directions = {site: like(model, site, seed)}
        read = [end] if model.sites.index(site) <= model.sites.index(end) else []
        found = wb.jvp(model, CLEAN, directions, read, logits=True, metric=METRIC, plan=plan)
        assert found.logits is not None
        assert found.metric is not None
        expected = difference(model, directions, lambda t: t.logits, plan=plan)
        tiny.close(found.logits, expected, 1e-6)  # steps of 1e-6 in float64
        tiny.close(found.metric, difference(model, directions, METRIC, plan=plan), 1e-6)
        alone = wb.jvp(model, CLEAN, directions, metric=METRIC, plan=plan).metric
        assert alone is not None
        tiny.close(alone, found.metric)
        for other in read:
            expected = difference(
                model, directions, lambda t, o=other: t[o], plan=plan, record=[other]
            )
            tiny.close(found[other], expected, 1e-6)


@kinds
@pytest.mark.usefixtures("unchecked")
def test_vjp_is_the_adjoint_of_jvp_between_all_sites(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    sites = [s for s in model.sites if s.layer in (0, 1, None) and "scores" not in s.name]
    tangents = {site: like(model, site, i) for i, site in enumerate(sites[::3])}
    cotangents = {site: like(model, site, 50 + i) for i, site in enumerate(sites[-7:])}
    for site, tangent in tangents.items():
        late = {s: v for s, v in cotangents.items() if sites.index(s) >= sites.index(site)}
        pushed = wb.jvp(model, CLEAN, {site: tangent}, list(late))
        pulled = wb.vjp(model, CLEAN, site, late)[site]
        forth = sum((pushed[s] * v).sum() for s, v in late.items())
        torch.testing.assert_close(
            torch.as_tensor(forth), (pulled * tangent).sum(), rtol=1e-9, atol=1e-9
        )


@kinds
def test_vjp_of_the_metrics_own_cotangent_is_its_gradient(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    words, last = CONTRAST.on(model), wb.run(model, CLEAN).batch.last
    cotangent = torch.zeros(2, 5, model.sizes.d_vocab, dtype=torch.float64)
    for row in range(2):
        cotangent[row, last[row], words.target[row]] = 1
        cotangent[row, last[row], words.foil[row]] = -1
    pulled = wb.vjp(model, CLEAN, model.sites, logits=cotangent, plan=[CUT])
    expected = wb.gradients(model, CLEAN, model.sites, METRIC, plan=[CUT])
    assert list(pulled) == list(expected)
    for site, value in pulled.items():
        tiny.close(value, expected[site])


@kinds
def test_tangents_at_several_sites_add_up(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    both = {Site.parse(s): like(model, Site.parse(s), i) for i, s in enumerate((EARLY, MIDDLE))}
    together = wb.jvp(model, CLEAN, both, LATE, logits=True)
    parts = [wb.jvp(model, CLEAN, {s: v}, LATE, logits=True) for s, v in both.items()]
    tiny.close(together[LATE], parts[0][LATE] + parts[1][LATE])
    assert together.logits is not None
    tiny.close(
        together.logits, sum((p.logits for p in parts if p.logits is not None), torch.zeros(()))
    )


@kinds
def test_a_site_of_the_tangents_own_moves_by_it(kind: str) -> None:
    model, site = tiny.model(kind, torch.float64), Site.parse(MIDDLE)
    vector = like(model, site, 0)
    assert torch.equal(wb.jvp(model, CLEAN, {site: vector}, site)[site], vector)
    assert torch.equal(wb.vjp(model, CLEAN, site, {site: vector})[site], vector)


@kinds
def test_many_vectors_in_one_pass_are_each_alone(kind: str) -> None:
    model, early, late = tiny.model(kind, torch.float64), Site.parse(EARLY), Site.parse(LATE)
    many, words = like(model, early, 1, 4), like(model, late, 2, 4)
    pushed = wb.jvp(model, CLEAN, {early: many}, late, logits=True, metric=METRIC, batched=True)
    pulled = wb.vjp(model, CLEAN, early, {late: words}, batched=True)[early]
    assert pushed.logits is not None
    assert pushed.metric is not None
    for i in range(4):
        one = wb.jvp(model, CLEAN, {early: many[i]}, late, logits=True, metric=METRIC)
        assert one.logits is not None
        assert one.metric is not None
        tiny.close(pushed[late][i], one[late])
        tiny.close(pushed.logits[i], one.logits)
        tiny.close(pushed.metric[i], one.metric)
        tiny.close(pulled[i], wb.vjp(model, CLEAN, early, {late: words[i]})[early])


@kinds
def test_what_a_plan_replaces_passes_nothing_on(kind: str) -> None:
    model, early, late = tiny.model(kind, torch.float64), Site.parse(EARLY), Site.parse(LATE)
    cut = [wb.Intervention("blocks.1.hook_resid_pre", wb.ops.set(tiny.normal(24).double()))]
    vectors = {early: like(model, early, 0, 2)[:, :1]}
    pushed = wb.jvp(model, CLEAN[0], vectors, late, plan=cut, batched=True)
    words = {late: like(model, late, 0, 2)[:, :1]}
    pulled = wb.vjp(model, CLEAN[0], early, words, plan=cut, batched=True)
    assert pulled[early].shape == vectors[early].shape
    assert not bool(pulled[early].any())
    assert not bool(pushed[late].any())


@kinds
def test_products_leave_nothing_behind(kind: str) -> None:
    model, early, late = tiny.model(kind), Site.parse(EARLY), Site.parse(LATE)
    state, digest, vector = torch.get_rng_state(), tiny.digest(model), like(model, early, 0)
    with torch.inference_mode():
        pushed = wb.jvp(model, CLEAN, {early: vector}, late, logits=True, metric=METRIC)
        pulled = wb.vjp(model, CLEAN, early, {late: like(model, late, 0)})
    assert all(weight.grad is None for weight in model.stack.parameters())
    assert vector.grad is None
    assert not any(
        v.requires_grad
        for v in (pushed[late], pushed.logits, pushed.metric, *pulled.values())
        if v is not None
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert tiny.digest(model) == digest


def test_what_makes_no_sense_is_refused() -> None:
    model, early, late = tiny.model(), Site.parse(EARLY), Site.parse(LATE)
    first, last = like(model, early, 0), like(model, late, 0)
    with pytest.raises(UnknownNameError):
        wb.jvp(model, CLEAN, {"blocks.9.hook_resid_pre": first}, late)
    with pytest.raises(UnknownNameError):
        wb.vjp(model, CLEAN, "blocks.9.hook_resid_pre", {late: last})
    with pytest.raises(OptionError, match=f"none after {EARLY}, which cannot depend on it"):
        wb.jvp(model, CLEAN, {late: last}, early)
    with pytest.raises(OptionError, match=f"none before {LATE}, on which it would depend"):
        wb.jvp(model, CLEAN, {late: last}, early, logits=True)
    with pytest.raises(OptionError, match=f"none after {EARLY}"):
        wb.vjp(model, CLEAN, late, {early: first})
    with pytest.raises(
        ShapeError, match=r"the vector at blocks.0.hook_resid_pre: expected \(2, 5, 24\)"
    ):
        wb.jvp(model, CLEAN, {early: first[:1]}, late)
    with pytest.raises(ShapeError, match=r"the vector at logits: expected \(2, 5, 258\)"):
        wb.vjp(model, CLEAN, early, logits=first)
    uneven = {
        early: first.expand(3, -1, -1, -1),
        Site.parse("blocks.1.hook_resid_pre"): first[None],
    }
    with pytest.raises(ShapeError, match=r"blocks.1.hook_resid_pre: expected \(3, 2, 5, 24\)"):
        wb.jvp(model, CLEAN, uneven, late, batched=True)
    with pytest.raises(NonFiniteError, match=f"the vector at {EARLY}: 240 of 240"):
        wb.jvp(model, CLEAN, {early: first * torch.nan}, late)
    with pytest.raises(EmptySelectionError):
        wb.jvp(model, CLEAN, {early: first})
    with pytest.raises(EmptySelectionError):
        wb.jvp(model, CLEAN, {}, late)
    with pytest.raises(EmptySelectionError):
        wb.vjp(model, CLEAN, early)


@kinds
def test_threads_share_a_model_whatever_they_derive(kind: str) -> None:
    """Forward-mode differentiation of torch itself fails here: its level is the process's."""
    model, early, late = tiny.model(kind), Site.parse(EARLY), Site.parse(LATE)
    first, last = like(model, early, 0, 3), like(model, late, 0, 3)

    def work(i: int) -> list[Tensor]:
        if i % 4 == 0:
            return [wb.run(model, CLEAN, plan=[CUT]).logits]
        if i % 4 == 1:
            return list(wb.gradients(model, CLEAN, model.sites, METRIC).values())
        if i % 4 == 2:
            found = wb.jvp(model, CLEAN, {early: first}, late, logits=True, batched=True)
            return [found[late], found.logits if found.logits is not None else first]
        return list(wb.vjp(model, CLEAN, early, {late: last}, batched=True).values())

    alone = [work(i) for i in range(4)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(work, range(96)))
    for i, found in enumerate(together):
        assert all(map(torch.equal, found, alone[i % 4])), i
