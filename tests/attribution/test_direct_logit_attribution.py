"""Contributions add up to the metric, and each is what a hand computation gives."""

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.attribution.examples import ONE, THREE
from workbench.attribution import METHODS, Attribution
from workbench.core.data import Contrast
from workbench.core.errors import OptionError, UnknownNameError

METHOD = METHODS["direct_logit_attribution"]
kinds = pytest.mark.parametrize("kind", tiny.KINDS)
contrasts = pytest.mark.parametrize("contrast", [ONE, THREE], ids=["one", "three"])


def checks(found: Attribution) -> dict[str, float]:
    return {check.name: check.value for check in found.checks}


@kinds
@contrasts
@pytest.mark.parametrize("metric", ["logit_difference", "logit", "log_probability"])
def test_contributions_add_up_to_the_metric(kind: str, contrast: Contrast, metric: str) -> None:
    model = tiny.model(kind, torch.float64)
    measure = vars(wb.metrics)[metric](contrast)
    found = METHOD(model, contrast, measure)
    exact = torch.cat(
        [
            measure.on(model).read(wb.run(model, row).logits[:, -1][:, columns], torch.tensor([i]))
            for i, row in enumerate(_rows(contrast))
            for columns in [_columns(measure.on(model).vocabulary)]
        ]
    )
    tiny.close(found.per_example.sum((1, 2)), exact)
    tiny.close(found.base, exact)
    assert abs(checks(found)["sum - metric"]) < 1e-10
    assert checks(found)["metric, clean"] == pytest.approx(float(exact.mean()))


def _rows(contrast: Contrast) -> list[str]:
    return [contrast.clean] if isinstance(contrast.clean, str) else [str(c) for c in contrast.clean]


def _columns(vocabulary: Tensor | None) -> Tensor:
    return torch.arange(258) if vocabulary is None else vocabulary


@kinds
def test_an_example_does_not_depend_on_its_batch(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    together = METHOD(model, THREE).per_example
    for i, (target, foil) in enumerate(zip("xyx", "yzb", strict=True)):
        alone = Contrast(str(THREE.clean[i]), str(THREE.corrupt[i]), target, foil)
        tiny.close(METHOD(model, alone).per_example[0], together[i])


@kinds
def test_an_axis_left_out_is_summed_over(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    full = METHOD(model, THREE)
    assert [axis.name for axis in full.axes] == ["component", "layer"]
    for axis, dim in (("layer", 1), ("component", 2)):
        part = METHOD(model, THREE, axes=[axis])
        assert [one.name for one in part.axes] == [axis]
        tiny.close(part.per_example, full.per_example.sum(dim))
    swapped = METHOD(model, THREE, axes=["layer", "component"])
    assert swapped.axes == full.axes
    tiny.close(swapped.per_example, full.per_example, 0)


def direction(model: wb.Model, kind: str, contrast: Contrast, stream: Tensor) -> Tensor:
    """d metric / d stream with the norm's scale frozen, written out by hand."""
    words = contrast.on(model)
    weights = tiny.model(kind, torch.float64).stack
    unembed, gain = (
        weights.get_parameter("unembed.weight"),
        weights.get_parameter("ln_final.weight"),
    )
    facing = (unembed[list(words.target)] - unembed[list(words.foil)]) * gain  # example d_model
    if kind == "gpt2":
        centred = stream - stream.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return (facing - facing.mean(-1, keepdim=True)) / scale
    return facing / (stream.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@kinds
def test_every_component_is_what_a_hand_computation_gives(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    names = ("attn.hook_z", "hook_mlp_out", "hook_embed", "hook_pos_embed", "hook_resid_post")
    trace = wb.run(model, list(THREE.clean), record=lambda site: site.short in names)
    at_last = {site: value[range(3), trace.batch.last] for site, value in trace.items()}
    facing = direction(model, kind, THREE, at_last[wb.Site("blocks.{}.hook_resid_post", 2)])
    found = METHOD(model, THREE)
    rows = dict(zip(found.axes[0].labels, found.per_example.transpose(0, 1), strict=True))
    embeds = sum(value for site, value in at_last.items() if site.layer is None)
    tiny.close(rows["embed"][:, 0], (embeds * facing).sum(-1))
    assert not rows["embed"][:, 1:].any()
    assert not rows["constant"][:, :-1].any()
    sizes, stack = model.sizes, tiny.model(kind, torch.float64).stack
    for layer in range(sizes.n_layers):
        z = at_last[wb.Site("blocks.{}.attn.hook_z", layer)]
        out = stack.get_parameter(f"blocks.{layer}.attn.o.weight").T
        per_head = out.reshape(sizes.n_heads, sizes.d_head, sizes.d_model)
        for head in range(sizes.n_heads):
            written = z[:, head] @ per_head[head]
            tiny.close(rows[f"H{head}"][:, layer], (written * facing).sum(-1))
        bias = stack.get_parameter(f"blocks.{layer}.attn.o.bias")
        tiny.close(rows["attn_bias"][:, layer], facing @ bias)
        mlp = at_last[wb.Site("blocks.{}.hook_mlp_out", layer)]
        tiny.close(rows["mlp"][:, layer], (mlp * facing).sum(-1))


@kinds
def test_one_component_keeps_its_score_and_the_check_owns_up_to_the_rest(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    full, part = METHOD(model, ONE), METHOD(model, ONE, sites="blocks.*.hook_mlp_out")
    row = full.axes[0].labels.index("mlp")
    tiny.close(part.scores[row], full.scores[row])
    assert not part.scores[:row].any()
    missing = float(part.scores.sum() - full.scores.sum())
    assert checks(part)["sum - metric"] == pytest.approx(missing)
    assert abs(missing) > 1e-3


@kinds
def test_attention_without_its_heads_is_not_called_a_bias(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    full, part = METHOD(model, ONE), METHOD(model, ONE, sites="blocks.*.hook_attn_out")
    assert "attn_bias" not in part.axes[0].labels
    row = part.axes[0].labels.index("attn")
    tiny.close(part.scores[row], full.scores[1 : row + 1].sum(0))


def test_it_refuses_what_does_not_write_to_the_stream() -> None:
    model = tiny.model()
    with pytest.raises(OptionError, match="sites must be sites that add to the residual stream"):
        METHOD(model, ONE, sites="blocks.*.attn.hook_z")
    with pytest.raises(OptionError, match="axes must be some of component, layer, got"):
        METHOD(model, ONE, axes=["head"])
    with pytest.raises(OptionError, match="axes must be some of component, layer, got"):
        METHOD(model, ONE, axes=[])
    with pytest.raises(UnknownNameError, match="No site named"):
        METHOD(model, ONE, sites="blocks.9.hook_mlp_out")


def test_swapping_target_and_foil_flips_every_sign() -> None:
    model = tiny.model("gpt2", torch.float64)
    other = Contrast(clean=ONE.clean, corrupt=ONE.corrupt, target=ONE.foil, foil=ONE.target)
    tiny.close(METHOD(model, other).scores, -METHOD(model, ONE).scores)


VECTOR = tiny.normal(24, seed=9, dtype=torch.float64)
PLANS = {
    "add to the stream": [wb.Intervention("blocks.1.hook_resid_post", wb.ops.add(VECTOR))],
    "zero the stream": [wb.Intervention("blocks.1.hook_resid_mid", wb.ops.zero())],
    "scale what attention writes": [wb.Intervention("blocks.2.hook_attn_out", wb.ops.scale(-1.0))],
    "cut a head and an MLP": [
        wb.Intervention("blocks.0.attn.hook_z", wb.ops.zero(), heads=[1]),
        wb.Intervention("blocks.1.hook_mlp_out", wb.ops.zero()),
    ],
    "change the embedding": [wb.Intervention("hook_embed", wb.ops.scale(0.5))],
    "two at one place": [
        wb.Intervention("blocks.2.hook_resid_pre", wb.ops.add(VECTOR)),
        wb.Intervention("blocks.2.hook_resid_pre", wb.ops.project_out(VECTOR), positions=-1),
    ],
}


@kinds
@pytest.mark.parametrize("name", PLANS)
def test_contributions_add_up_under_a_plan(kind: str, name: str) -> None:
    model, plan = tiny.model(kind, torch.float64), PLANS[name]
    found = METHOD(model, THREE, plan=plan)
    assert abs(checks(found)["sum - metric"]) < 1e-10
    difference = wb.metrics.logit_difference(THREE)
    tiny.close(found.base, difference(wb.run(model, THREE.clean, plan=plan)))
    tiny.close(found.donor, difference(wb.run(model, THREE.corrupt, plan=plan)))


@kinds
def test_a_direction_added_to_the_stream_is_the_plan_s_own_part(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    plan = [wb.Intervention("blocks.2.hook_resid_post", wb.ops.add(VECTOR), strength=2.0)]
    one, other = METHOD(model, ONE, plan=plan), METHOD(model, ONE)
    labels = one.axes[0].labels
    assert labels == (*other.axes[0].labels[:-1], "plan", "constant")
    own = one.per_example[0, labels.index("plan")]
    assert float(own[:2].abs().sum()) == 0.0
    # One run with a thousandth more of it: the scale of the final norm all but stands still.
    more = [wb.Intervention("blocks.2.hook_resid_post", wb.ops.add(VECTOR), strength=2.002)]
    grown = METHOD(model, ONE, plan=more).per_example[0, labels.index("plan"), 2]
    assert float(grown / own[2]) == pytest.approx(1.001, abs=2e-3)


@kinds
def test_what_a_plan_cuts_contributes_nothing(kind: str) -> None:
    found = METHOD(tiny.model(kind, torch.float64), ONE, plan=PLANS["cut a head and an MLP"])
    labels = found.axes[0].labels
    assert "plan" not in labels
    assert float(found.scores[labels.index("H1"), 0]) == 0.0
    assert float(found.scores[labels.index("mlp"), 1]) == 0.0


def test_a_plan_after_the_blocks_is_refused() -> None:
    late = [wb.Intervention("ln_final.hook_normalized", wb.ops.scale(0.5))]
    with pytest.raises(OptionError, match="plan must be interventions at or before the last block"):
        METHOD(tiny.model(), ONE, plan=late)
