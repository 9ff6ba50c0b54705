"""Every effect is one changed run's; the two directions are each other's mirror."""

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.attribution.examples import ONE, SAME, THREE
from workbench.attribution.methods.activation_patching import ActivationPatching
from workbench.core.data import Contrast
from workbench.core.errors import AlignmentError, OptionError

METHOD = ActivationPatching()
BACK = ActivationPatching(direction="denoising")
kinds = pytest.mark.parametrize("kind", tiny.KINDS)
directions = pytest.mark.parametrize("method", [METHOD, BACK], ids=lambda m: m.direction)


def single(
    model: wb.Model, contrast: Contrast, base: str, donor: str, site: str, pos: int, head: int
) -> float:
    """One place of one example, by one changed run on its own, without a sweep."""
    metric = wb.metrics.logit_difference(contrast)
    given = wb.run(model, donor, record=[site])[site]
    change = wb.Intervention(site, wb.ops.set(given), positions=pos, heads=head)
    changed = wb.run(model, base, plan=[change])
    return float(metric(changed) - metric(wb.run(model, base)))


@kinds
@directions
def test_an_effect_is_one_changed_run(kind: str, method: ActivationPatching) -> None:
    model = tiny.model(kind, torch.float64)
    found = method(model, ONE, sites="blocks.*.attn.hook_z")
    assert [axis.name for axis in found.axes] == ["layer", "pos", "head"]
    assert found.scores.shape == (3, 6, model.sizes.n_heads)
    base, donor = (ONE.clean, ONE.corrupt) if method is METHOD else (ONE.corrupt, ONE.clean)
    for layer, pos, head in ((0, 2, 0), (1, 3, 1), (2, 5, 2), (2, 4, 1)):
        site = f"blocks.{layer}.attn.hook_z"
        alone = single(model, ONE, str(base), str(donor), site, pos, head)
        assert float(found.scores[layer, pos, head]) == pytest.approx(alone, abs=1e-10)


@kinds
@directions
def test_rows_of_different_lengths_are_as_each_alone(kind: str, method: ActivationPatching) -> None:
    model = tiny.model(kind, torch.float64)
    together = method(model, THREE)
    assert together.per_example.shape == (3, 3, 8)
    for i, (target, foil) in enumerate(zip("xyx", "yzb", strict=True)):
        clean, corrupt = str(THREE.clean[i]), str(THREE.corrupt[i])
        alone = method(model, Contrast(clean, corrupt, target, foil)).per_example[0]
        tiny.close(together.per_example[i, :, : len(clean)], alone)
        assert not together.per_example[i, :, len(clean) :].any(), "beyond its end"
        tiny.close(
            together.donor[i], method(model, Contrast(clean, corrupt, target, foil)).donor[0]
        )


@kinds
@directions
def test_patching_a_whole_layer_of_the_stream_gives_the_donor(
    kind: str, method: ActivationPatching
) -> None:
    model = tiny.model(kind, torch.float64)
    found = method(model, THREE, axes=["layer"])
    total = (found.donor - found.base)[:, None].expand(3, 3)
    tiny.close(found.per_example, total)
    checks = {check.name: check.value for check in found.checks}
    assert checks["total effect"] == pytest.approx(float(total.mean()))
    assert checks["cells"] == 3


@kinds
def test_noising_and_denoising_share_ends_and_mirror_the_total(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    one, other = METHOD(model, THREE, axes=["layer"]), BACK(model, THREE, axes=["layer"])
    tiny.close(one.base, other.donor)
    tiny.close(one.donor, other.base)
    tiny.close(one.per_example, -other.per_example)


@kinds
@directions
def test_equal_prompts_have_effects_of_exactly_zero(kind: str, method: ActivationPatching) -> None:
    model = tiny.model(kind)
    for sites in (None, "blocks.*.attn.hook_z", "blocks.*.hook_mlp_out"):
        found = method(model, SAME, sites=sites)
        assert float(found.per_example.abs().max()) < 1e-5  # batch sizes differ: another kernel


@kinds
@directions
def test_equal_prompts_in_float64_have_no_effect(kind: str, method: ActivationPatching) -> None:
    found = method(tiny.model(kind, torch.float64), SAME)
    tiny.close(found.per_example, torch.zeros_like(found.per_example), 1e-12)


@kinds
def test_before_the_first_difference_nothing_has_an_effect(kind: str) -> None:
    found = METHOD(tiny.model(kind, torch.float64), ONE)
    tiny.close(found.scores[:, :2], torch.zeros(3, 2, dtype=torch.float64), 1e-12)
    assert float(found.scores[0, 2].abs()) > 1e-6
    tiny.close(found.scores[0, 2], (found.donor - found.base)[0])


def test_a_budget_of_tokens_changes_no_number() -> None:
    model = tiny.model("llama", torch.float64)
    one = ActivationPatching(max_tokens=1)(model, THREE)
    tiny.close(one.per_example, ActivationPatching(max_tokens=10_000)(model, THREE).per_example)


def test_sites_of_several_kinds_have_an_axis_of_sites() -> None:
    model = tiny.model("gpt2", torch.float64)
    sites = ["blocks.*.hook_mlp_out", "blocks.*.hook_attn_out"]
    found = METHOD(model, ONE, sites=sites)
    assert [axis.name for axis in found.axes] == ["site", "pos"]
    assert found.axes[0].labels[:2] == ("blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    alone = METHOD(model, ONE, sites="blocks.*.hook_mlp_out")
    tiny.close(found.scores[1::2], alone.scores)


def test_positions_are_shown_as_tokens_of_a_single_prompt() -> None:
    assert METHOD(tiny.model(), ONE).axes[1].labels == tuple("abcdef")
    assert METHOD(tiny.model(), THREE).axes[1].labels == tuple("01234567")


def test_heads_that_share_keys_are_counted_as_they_are() -> None:
    found = METHOD(tiny.model(), ONE, sites="blocks.*.attn.hook_k")
    assert found.axes[2].labels == ("H0", "H1")
    with pytest.raises(OptionError, match="sites with equally many heads"):
        METHOD(tiny.model(), ONE, sites=["blocks.*.attn.hook_k", "blocks.*.attn.hook_q"])


@pytest.mark.parametrize(
    ("sites", "axes", "message"),
    [
        ("blocks.*.hook_resid_pre", ["head"], "axes must be with either 'layer' or 'site'"),
        ("blocks.*.hook_resid_pre", ["layer", "head"], "without 'head': blocks.0.hook_resid_pre"),
        (["blocks.*.hook_mlp_out", "hook_embed"], ["layer"], "with 'site' for 'layer'"),
        ("blocks.*.hook_resid_pre", ["layer", "site"], "with either 'layer' or 'site'"),
        ("blocks.*.hook_resid_pre", ["component"], "axes must be some of layer, site, pos, head"),
    ],
)
def test_axes_that_do_not_fit_are_refused(sites: object, axes: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        METHOD(tiny.model(), ONE, sites=sites, axes=axes)  # pyright: ignore[reportArgumentType]


def test_an_unknown_direction_and_prompts_that_do_not_match_are_refused() -> None:
    model = tiny.model()
    method = ActivationPatching()
    object.__setattr__(method, "direction", "both")  # as without beartype, which would refuse it
    with pytest.raises(OptionError, match="direction must be 'noising' or 'denoising'"):
        method(model, ONE)
    uneven = Contrast(clean="abc", corrupt="abcd", target="x", foil="y")
    with pytest.raises(AlignmentError, match="clean has 3 tokens, corrupt 4"):
        METHOD(model, uneven)


@kinds
@directions
def test_a_plan_holds_in_every_run(kind: str, method: ActivationPatching) -> None:
    model, site = tiny.model(kind, torch.float64), "blocks.1.hook_resid_pre"
    held = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.scale(0.5))]
    found = method(model, ONE, sites=site, plan=held)
    base, donor = (ONE.clean, ONE.corrupt) if method is METHOD else (ONE.corrupt, ONE.clean)
    metric = wb.metrics.logit_difference(ONE)
    given = wb.run(model, str(donor), plan=held, record=[site])[site]
    before = metric(wb.run(model, str(base), plan=held))
    for pos in range(6):
        change = wb.Intervention(site, wb.ops.set(given), positions=pos)
        effect = metric(wb.run(model, str(base), plan=[*held, change])) - before
        assert float(found.scores[0, pos]) == pytest.approx(float(effect), abs=1e-10)


@kinds
def test_places_before_the_prompts_part_need_no_run(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    found = METHOD(model, ONE)
    assert torch.equal(found.scores[:, :2], torch.zeros(3, 2, dtype=torch.float64))
    assert bool((found.scores[:, 2] != 0).all())
    assert {check.name: check.value for check in found.checks}["parted"] == 2


@kinds
@pytest.mark.parametrize("name", ["attn_scores", "pattern"])
def test_attention_is_patched_head_by_head(kind: str, name: str) -> None:
    model, site = tiny.model(kind, torch.float64), f"blocks.1.attn.hook_{name}"
    found = METHOD(model, ONE, sites=site, axes=("layer", "head"))
    metric = wb.metrics.logit_difference(ONE)
    given = wb.run(model, str(ONE.corrupt), record=[site])[site]
    base = metric(wb.run(model, str(ONE.clean)))
    for head in range(model.sizes.n_heads):
        change = wb.Intervention(site, wb.ops.set(given), heads=head)
        effect = metric(wb.run(model, str(ONE.clean), plan=[change])) - base
        assert float(found.scores[0, head]) == pytest.approx(float(effect), abs=1e-10)


def test_a_site_outside_the_blocks_is_named_as_itself() -> None:
    found = METHOD(tiny.model(), ONE, sites="hook_embed")
    assert found.axes[0].labels == ("hook_embed",)
