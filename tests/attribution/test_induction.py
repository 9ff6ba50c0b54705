"""The induction model has the values it was built to have, and patching finds them all."""

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.attribution import METHODS, Attribution
from workbench.attribution.known_truth import KnownTruth, induction
from workbench.attribution.methods.activation_patching import ActivationPatching
from workbench.core.errors import PromptError, TokenError

HEADS = "blocks.*.attn.hook_z"
EXACT = 1e-9  # float64; the attention is saturated to e^-40


@pytest.fixture(scope="module")
def truth() -> KnownTruth:
    return induction.build()


def patched(truth: KnownTruth, method: ActivationPatching) -> Attribution:
    """Effects of whole heads on the target's logit."""
    metric = wb.metrics.logit(truth.contrast)
    return method(truth.model, truth.contrast, metric, HEADS, axes=["layer", "head"])


def test_it_says_what_it_was_built_to_say(truth: KnownTruth) -> None:
    metric = wb.metrics.logit(truth.contrast)
    for prompt, value in ((truth.contrast.clean, 10.0), (truth.contrast.corrupt, 0.0)):
        logits = float(metric(wb.run(truth.model, prompt)))
        assert logits == pytest.approx(value, abs=EXACT)
    assert (truth.clean, truth.corrupt) == (10.0, 0.0)


def test_it_continues_every_permutation() -> None:
    """Accuracy 1: whatever the letters, the one that followed comes next."""
    model = induction.build().model
    draws = torch.Generator().manual_seed(0)
    first = torch.stack([torch.randperm(8, generator=draws) for _ in range(64)])
    prompts = torch.cat([first, first[:, :5]], dim=1)
    logits = wb.run(model, prompts).answer_logits
    assert torch.equal(logits.argmax(-1), first[:, 5])
    tiny.close(logits.amax(-1), torch.full((64,), 10.0, dtype=torch.float64), EXACT)


def test_noising_gives_the_effect_of_every_head(truth: KnownTruth) -> None:
    found = patched(truth, ActivationPatching())
    expected = torch.tensor([[-10 * 12 / 13, 0], [-10, 0]], dtype=torch.float64)
    tiny.close(found.scores, expected, EXACT)
    assert dict(truth.resample) == {(0, 0): pytest.approx(-9.2308, abs=1e-4), (1, 0): -10.0}


def test_distractors_have_an_effect_of_exactly_nothing(truth: KnownTruth) -> None:
    for direction in ("noising", "denoising"):
        found = patched(truth, ActivationPatching(direction=direction))
        assert torch.equal(found.scores[:, 1], torch.zeros(2, dtype=torch.float64)), direction


def test_denoising_needs_the_second_head_alone(truth: KnownTruth) -> None:
    found = patched(truth, ActivationPatching(direction="denoising"))
    expected = torch.tensor([[0, 0], [10, 0]], dtype=torch.float64)
    tiny.close(found.scores, expected, EXACT)


def test_zeroing_a_head_is_what_the_reference_says(truth: KnownTruth) -> None:
    metric = wb.metrics.logit(truth.contrast)
    cells = [
        wb.Intervention(f"blocks.{layer}.attn.hook_z", wb.ops.zero(), heads=0) for layer in (0, 1)
    ]
    swept = wb.sweep(truth.model, truth.contrast.clean, cells, metric)
    expected = torch.tensor([[-10 * 12 / 13], [-10.0]], dtype=torch.float64)
    tiny.close(swept.effects, expected, EXACT)


def test_softer_attention_gives_the_reference_value() -> None:
    soft = induction.build(beta=4.0)
    value = wb.metrics.logit(soft.contrast)(wb.run(soft.model, soft.contrast.clean))
    assert float(value) == pytest.approx(7.5610, abs=5e-5)  # as printed in the reference


def test_direct_attribution_credits_the_second_head_alone(truth: KnownTruth) -> None:
    method = METHODS["direct_logit_attribution"]
    found = method(truth.model, truth.contrast, wb.metrics.logit(truth.contrast))
    named = dict(zip(found.axes[0].labels, found.scores, strict=True))
    assert named["H0"].tolist() == pytest.approx([0, 10], abs=EXACT)
    others = [float(value.abs().sum()) for name, value in named.items() if name != "H0"]
    assert others == [0] * len(others)


def test_two_builds_are_equal_to_the_bit() -> None:
    one, other = induction.weights(), induction.weights()
    assert one.keys() == other.keys()
    assert all(tiny.same_bytes(one[name], other[name]) for name in one)
    assert induction.build().model.fingerprint == induction.build().model.fingerprint
    assert induction.build().model.fingerprint != induction.build(beta=4.0).model.fingerprint


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    induction.build()
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_reads_its_letters_only(truth: KnownTruth) -> None:
    with pytest.raises(PromptError, match=r"reads the letters 'abc\w+' only, got ' H'"):
        wb.run(truth.model, "a Ha")
    with pytest.raises(TokenError, match="'ab' must be one token and is 2"):
        wb.Contrast(clean="abc", corrupt="cba", target="ab", foil="c").on(truth.model)
