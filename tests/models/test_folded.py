"""Weight views: they say what their model says, share what they can and leave it as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import OptionError
from workbench.models.layers.norm import PlainLayerNorm, PlainRMSNorm
from workbench.models.views.folded import Folded, Folding, fold, parity
from workbench.models.views.stacks import bias_of, blocks_of, words_of

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
FLAGS = tuple(vars(Folding()))
IDS = tiny.tokens(2, 9)


def view(kind: str, **flags: bool) -> Folded:
    """In float64, with only the steps that are named."""
    steps = Folding(**{**dict.fromkeys(FLAGS, False), **flags})
    return fold(tiny.model(kind, torch.float64), steps)


def said(model: wb.Model) -> Tensor:
    """Log-probabilities of every next token."""
    return wb.run(model, IDS).logits.log_softmax(-1)


@kinds
@pytest.mark.parametrize("name", FLAGS)
def test_each_step_alone_keeps_the_log_probabilities(kind: str, name: str) -> None:
    made = view(kind, **{name: True})
    tiny.close(said(made.model), said(tiny.model(kind, torch.float64)))
    assert made.parity.difference < 1e-10
    assert (made.parity.applied == (name,)) == (name not in LEFT_OUT[kind])


LEFT_OUT = {
    "gpt2": (),
    "llama": ("center_writing_weights", "refactor_factored_attn_matrices"),
}


@kinds
def test_all_steps_together_do_in_both_precisions(kind: str) -> None:
    every = dict.fromkeys(FLAGS, True)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = tiny.model(kind, dtype)
        made = model.folded(**every)
        assert made.parity.difference < tolerance
        assert made.parity.difference == parity(model, made.model)
        assert [text.split()[0] for text in made.parity.left_out] == list(LEFT_OUT[kind])


@kinds
def test_a_view_leaves_its_model_alone_and_may_be_used_in_turn_with_it(kind: str) -> None:
    model = tiny.model(kind)
    before, own = tiny.digest(model), wb.run(model, IDS).logits
    made = model.folded().model
    other = wb.run(made, IDS).logits
    for _ in range(2):
        assert tiny.same_bytes(wb.run(model, IDS).logits, own)
        assert tiny.same_bytes(wb.run(made, IDS).logits, other)
    assert tiny.digest(model) == before
    assert made.fingerprint != model.fingerprint
    assert not any(weight.requires_grad for weight in made.stack.parameters())


@kinds
def test_nothing_is_copied_that_need_not_change(kind: str) -> None:
    model = tiny.model(kind)
    same = fold(model, Folding(**dict.fromkeys(FLAGS, False))).model
    ours = {weight.data_ptr() for weight in model.stack.parameters()}
    assert {weight.data_ptr() for weight in same.stack.parameters()} == ours
    unembed = view(kind, center_unembed=True).model.stack
    changed = [
        name
        for name, weight in unembed.named_parameters()
        if weight.data_ptr()
        != dict(tiny.model(kind, torch.float64).stack.named_parameters())[name].data_ptr()
    ]
    assert changed == ["unembed.weight"]


@kinds
def test_folded_norms_have_no_weights_and_the_same_sites(kind: str) -> None:
    model, made = tiny.model(kind), view(kind, fold_ln=True).model
    plain = PlainLayerNorm if kind == "gpt2" else PlainRMSNorm
    norms = [made.stack.ln_final, *(b.ln1 for b in blocks_of(made.stack))]
    assert all(isinstance(norm, plain) for norm in norms)
    assert made.sites == model.sites
    open_, fused = wb.run(made, IDS, record=made.sites), wb.run(made, IDS)
    tiny.close(open_.logits, fused.logits)


def test_a_folded_norm_has_no_mean_left_to_read() -> None:
    made = view("gpt2", fold_ln=True).model
    for block in blocks_of(made.stack):
        tiny.close(block.attn.q.weight.sum(1), torch.zeros(24, dtype=torch.float64))
    tiny.close(words_of(made.stack).weight.sum(1), torch.zeros(258, dtype=torch.float64))


def test_centred_writers_add_nothing_to_the_mean_of_the_stream() -> None:
    made = view("gpt2", center_writing_weights=True).model
    stream = wb.run(made, IDS, record="blocks.*.hook_resid_post")
    for value in stream.values():
        tiny.close(value.mean(-1), torch.zeros(2, 9, dtype=torch.float64))


@kinds
def test_folded_value_biases_are_zero_and_values_centred_on_it(kind: str) -> None:
    made = view(kind, fold_value_biases=True).model
    for block in blocks_of(made.stack):
        bias = bias_of(block.attn.v)
        assert bias is not None
        assert not bool(bias.any())


def test_refactored_heads_are_orthogonal() -> None:
    made = view("gpt2", refactor_factored_attn_matrices=True).model
    for block in blocks_of(made.stack):
        by_head = block.attn.o.weight.unflatten(1, (3, 8)).permute(1, 2, 0)
        tiny.close(by_head @ by_head.mT, torch.eye(8, dtype=torch.float64).expand(3, -1, -1))


def test_a_parity_prints_what_was_done() -> None:
    assert str(tiny.model("llama").folded().parity).startswith(
        "fold_ln, center_unembed, fold_value_biases applied; log-probabilities of 32 random tokens"
    )


def test_tied_weights_come_apart_without_a_change_of_the_embedding() -> None:
    theirs: Any = tiny.hf("gpt2", tie_word_embeddings=True)
    model = wb.load(theirs, tokenizer=tiny.Bytes())
    made = model.folded(center_writing_weights=False).model
    assert made.stack.embed.tokens.data_ptr() == model.stack.embed.tokens.data_ptr()
    assert not made.stack.tied
    tiny.close(said(made), said(model), 1e-5)


def test_what_is_no_truth_value_is_refused() -> None:
    wrong: Any = 1
    with tiny.unchecked(), pytest.raises(OptionError, match="fold_ln must be True or False, got 1"):
        tiny.model("gpt2").folded(fold_ln=wrong)
