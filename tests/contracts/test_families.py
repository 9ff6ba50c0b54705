"""What every model family keeps to; one to come needs a tiny config in `tests.tiny`."""

from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.errors import UnknownConfigKeyError
from workbench.models.family import FAMILIES

families = pytest.mark.parametrize("name", list(FAMILIES))
PROMPTS = ["abcdef", "ab", "hello you"]


def test_every_family_has_a_tiny_model() -> None:
    assert sorted(FAMILIES) == sorted(tiny.KINDS)


@families
@pytest.mark.parametrize("tied", [False, True])
def test_it_says_what_transformers_says(name: str, tied: bool) -> None:
    theirs: Any = tiny.hf(name, tie_word_embeddings=tied)
    ours = wb.load(theirs, tokenizer=tiny.Bytes())
    for prompt in PROMPTS:
        ids = torch.tensor([list(prompt.encode())])
        with torch.no_grad():
            out = theirs(ids, output_hidden_states=True, output_attentions=True)
        trace = wb.run(ours, prompt, record=ours.sites)
        tiny.close(trace.logits, out.logits, 1e-5)
        for layer, (stream, pattern) in enumerate(
            zip(out.hidden_states[:-1], out.attentions, strict=True)
        ):
            tiny.close(trace[f"blocks.{layer}.hook_resid_pre"], stream, 1e-5)
            tiny.close(trace[f"blocks.{layer}.attn.hook_pattern"], pattern, 1e-5)


@families
def test_padding_on_either_side_changes_nothing(name: str) -> None:
    model = tiny.model(name)
    alone = [wb.run(model, prompt).answer_logits[0] for prompt in PROMPTS]
    for side in ("left", "right"):
        together = wb.run(model, PROMPTS, padding_side=side).answer_logits
        tiny.close(together, torch.stack(alone), 1e-5)


@families
def test_the_sites_listed_are_those_that_fire(name: str) -> None:
    model, spy = tiny.model(name), tiny.Spy()
    wb.run(model, PROMPTS, tap=spy)
    assert spy.sites == list(model.sites)
    assert all(wb.Site.parse(str(site)) == site for site in model.sites)


@families
def test_a_config_key_it_does_not_know_is_refused(name: str) -> None:
    theirs: Any = tiny.hf(name)
    theirs.config.residual_gain = 0.5
    with pytest.raises(UnknownConfigKeyError, match=f"{name}: config key 'residual_gain' = 0.5"):
        wb.load(theirs, tokenizer=tiny.Bytes())


@families
def test_loading_freezes_every_weight_and_takes_no_gradient(name: str) -> None:
    model = wb.load(tiny.hf(name), tokenizer=tiny.Bytes())
    assert all(not p.requires_grad and p.grad is None for p in model.stack.parameters())
    assert not model.stack.training
