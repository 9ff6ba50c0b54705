"""What every encoder–decoder family keeps to; one to come needs a config in `tests/two_stacks`."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.two_stacks import TWO_STACKS, Texts, hf, logits_of, model_of
from workbench.core.data import batch_of
from workbench.core.errors import UnknownConfigKeyError
from workbench.core.operators import Scale, Zero
from workbench.core.program import block_of
from workbench.core.sites import Site

TOLERANCE = 1e-5  # float32: the same sums in another order
CASES = [(name, change) for name in TWO_STACKS for change in TWO_STACKS[name].variants]
families = pytest.mark.parametrize("name", list(TWO_STACKS))
variants = pytest.mark.parametrize(
    ("name", "changes"),
    [(name, TWO_STACKS[name].variants[change]) for name, change in CASES],
    ids=[f"{name}: {change}" for name, change in CASES],
)
BY_COLUMN = {"bart"}  # transformers counts its positions by column, pads too
SOURCE, TARGET = Texts.sources, Texts.targets


@variants
def test_it_says_what_transformers_says(name: str, changes: Mapping[str, Any]) -> None:
    theirs = hf(name, **changes)
    ours, ids, given = wb.load(theirs), tiny.tokens(2, 11), tiny.tokens(2, 7, seed=1)
    with torch.no_grad():
        expected = theirs(
            input_ids=ids,
            decoder_input_ids=given,
            output_hidden_states=True,
            output_attentions=True,
        )
    plain, trace = wb.run(ours, ids, target=given), wb.run(ours, ids, target=given, record="*")
    tiny.close(plain.logits, expected.logits, TOLERANCE)
    tiny.close(trace.logits, expected.logits, TOLERANCE)
    tiny.close(trace["hook_encoder_out"], expected.encoder_last_hidden_state, TOLERANCE)
    n_encoder = ours.sizes.n_encoder_layers
    for layer in range(n_encoder):
        stream, pattern = f"encoder.{layer}.hook_resid_pre", f"encoder.{layer}.attn.hook_pattern"
        tiny.close(trace[stream], expected.encoder_hidden_states[layer], TOLERANCE)
        tiny.close(trace[pattern], expected.encoder_attentions[layer], TOLERANCE)
    for layer in range(ours.sizes.n_layers - n_encoder):
        block = f"decoder.{layer}"
        stream = trace[f"{block}.hook_resid_pre"]
        tiny.close(stream, expected.decoder_hidden_states[layer], TOLERANCE)
        pattern, across = f"{block}.attn.hook_pattern", f"{block}.cross_attn.hook_pattern"
        tiny.close(trace[pattern], expected.decoder_attentions[layer], TOLERANCE)
        tiny.close(trace[across], expected.cross_attentions[layer], TOLERANCE)


@variants
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(
    name: str, changes: Mapping[str, Any], side: Any
) -> None:
    theirs = hf(name, **changes)
    ours = wb.load(theirs)
    trace = wb.run(ours, SOURCE, target=TARGET, padding_side=side)
    mask = trace.batch.real
    assert mask is not None
    if side == "right" or name not in BY_COLUMN:
        with torch.no_grad():
            expected = logits_of(theirs, trace.batch)
        tiny.close(trace.logits[mask], expected[mask], TOLERANCE)
    for row, (ids, given) in enumerate(zip(SOURCE, TARGET, strict=True)):
        alone = wb.run(ours, [ids], target=[given]).logits[0]
        tiny.close(trace.logits[row][mask[row]], alone, TOLERANCE)


@variants
def test_it_writes_what_transformers_writes(name: str, changes: Mapping[str, Any]) -> None:
    theirs = hf(name, **changes)
    ours = wb.load(theirs)
    with tiny.unchecked():
        together = wb.generate(ours, SOURCE, target=TARGET, max_new_tokens=6)
        alone = [
            wb.generate(ours, [ids], target=[given], max_new_tokens=6)
            for ids, given in zip(SOURCE, TARGET, strict=True)
        ]
    for row, (ids, given) in enumerate(zip(SOURCE, TARGET, strict=True)):
        said = list(given)
        with torch.no_grad():
            for _ in range(6):  # without a cache: the longest way there is
                told = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([said])}
                said.append(int(theirs(**told, use_cache=False).logits[0, -1].argmax()))
        assert list(alone[row].tokens[0]) == list(together.tokens[row]) == said[len(given) :]


@families
def test_the_sites_listed_are_those_that_fire(name: str) -> None:
    model, spy = model_of(name), tiny.Spy()
    batch = batch_of(model, SOURCE, target=TARGET)
    wb.run(model, batch, tap=spy)
    assert spy.sites == list(model.sites)
    assert all(Site.parse(str(site)) == site for site in model.sites)
    assert all(len(shape) == len(site.axes) for site, shape in spy.fired)
    blocks = [block_of(site, model) for site in model.sites]
    assert blocks == sorted(blocks)
    assert set(blocks) == {-1, *range(model.sizes.n_layers + 1)}


@families
def test_what_is_looked_at_changes_nothing(name: str) -> None:
    model = model_of(name)
    batch = batch_of(model, SOURCE, target=TARGET)
    plain = wb.run(model, batch).logits
    for site in model.sites:  # each by itself, so that no other opens a fused kernel
        tiny.close(wb.run(model, batch, record=str(site)).logits, plain, TOLERANCE)


def tilted(value: Tensor) -> Tensor:
    """Something no norm and no softmax undoes."""
    return value * torch.linspace(0.5, 1.5, value.numel()).view_as(value)


@families
def test_a_change_at_each_site_changes_the_output(name: str) -> None:
    model = model_of(name)
    batch = batch_of(model, tiny.tokens(1, 6), target=tiny.tokens(1, 5, seed=1))
    plain = wb.run(model, batch).logits
    for site in model.sites:
        changed = wb.run(model, batch, plan=[wb.Intervention(str(site), tilted)])
        assert (changed.logits - plain).abs().max() > 1e-6, site


@families
def test_what_the_heads_write_sums_to_what_attention_writes(name: str) -> None:
    model = model_of(name)
    batch = batch_of(model, tiny.tokens(2, 7), target=tiny.tokens(2, 5, seed=1))
    trace = wb.run(model, batch, record=model.sites)
    outs = [site for site in model.sites if site.short in ("hook_attn_out", "hook_cross_attn_out")]
    plain = wb.run(model, batch, record=outs)
    for site in outs:
        tiny.close(trace[site], plain[site], TOLERANCE)  # the heads one by one, or all at once
        brick = site.short.removeprefix("hook_").removesuffix("_out")
        heads = f"{site.stack}.{site.layer}.{brick}.hook_result"
        bias = wb.run(model, batch, plan=[wb.Intervention(heads, Zero())], record=site)[site]
        assert (bias - trace[site]).abs().max() > 1e-4  # and they are what it writes


@families
def test_threads_share_one_model(name: str) -> None:
    model = model_of(name)
    batch = batch_of(model, SOURCE, target=TARGET)
    sites = ["encoder.1.attn.hook_z", "decoder.0.cross_attn.hook_z", "decoder.1.attn.hook_z"]
    plans = [[wb.Intervention(site, Scale(0.3))] for site in sites] + [[]]
    alone = [wb.run(model, batch, plan=plan).logits for plan in plans]

    def work(k: int) -> bool:
        return torch.equal(wb.run(model, batch, plan=plans[k % 4]).logits, alone[k % 4])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))


@families
def test_a_config_key_it_does_not_know_is_refused(name: str) -> None:
    theirs: Any = hf(name)
    theirs.config.residual_gain = 0.5
    with pytest.raises(UnknownConfigKeyError, match=f"{name}: config key 'residual_gain' = 0.5"):
        wb.load(theirs, tokenizer=tiny.Bytes())


@families
def test_loading_freezes_every_weight_and_takes_no_gradient(name: str) -> None:
    model = model_of(name)
    assert all(not p.requires_grad and p.grad is None for p in model.stack.parameters())
    assert not model.stack.training
