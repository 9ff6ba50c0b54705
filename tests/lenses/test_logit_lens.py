"""The logit lens is the model's own ending, applied early; each number is checked directly."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import CancelledError, OptionError, TokenError
from workbench.lenses import METHODS

LENS = METHODS["logit_lens"]
PROMPT = "abcabd"
kinds = pytest.mark.parametrize("kind", tiny.KINDS)


def directly(kind: str, layer: int, prompt: str = PROMPT) -> Tensor:
    """softmax(W_U norm(resid)) by hand, in float64."""
    model = tiny.model(kind, torch.float64)
    site = f"blocks.{layer}.hook_resid_post"
    stream = wb.run(model, prompt, record=[site])[site][0]
    stack = tiny.model(kind, torch.float64).stack
    if kind == "gpt2":
        stream = stream - stream.mean(-1, keepdim=True)
    scale = (stream.square().mean(-1, keepdim=True) + (1e-5 if kind == "gpt2" else 1e-6)).sqrt()
    normed = stream / scale * stack.get_parameter("ln_final.weight")
    if kind == "gpt2":
        normed = normed + stack.get_parameter("ln_final.bias")
    return (normed @ stack.get_parameter("unembed.weight").T).softmax(-1)


@kinds
def test_at_the_last_layer_the_lens_is_the_model(kind: str) -> None:
    model = tiny.model(kind)
    found = LENS(model, PROMPT, top_k=258)
    said = wb.run(model, PROMPT).logits[0].float().softmax(-1)
    tiny.close(found.top_probabilities[-1], said.sort(-1, descending=True).values, 1e-6)
    assert found.kl[-1].tolist() == pytest.approx([0] * 6, abs=1e-6)
    assert found.checks[0].name == "KL at the last layer"
    assert found.checks[0].value == pytest.approx(0, abs=1e-6)


@kinds
def test_every_number_is_what_a_direct_computation_gives(kind: str) -> None:
    found = LENS(tiny.model(kind, torch.float64), PROMPT, top_k=4, watch=["x", "y"])
    said = directly(kind, 2)
    for layer in range(3):
        seen = directly(kind, layer)
        top = seen.topk(4)
        assert torch.equal(found.top_tokens[layer], top.indices)
        close(found.top_probabilities[layer], top.values)
        close(found.entropy[layer], -(seen * seen.log()).sum(-1))
        close(found.kl[layer], (said * (said.log() - seen.log())).sum(-1))
        for i, token in enumerate((ord("x"), ord("y"))):
            close(found.watched[layer, :, i], seen[:, token])
            better = (seen > seen[:, [token]]).sum(-1)
            assert torch.equal(found.ranks[layer, :, i], better)
    assert bool((found.kl > -1e-6).all())


def close(one: Tensor, other: Tensor) -> None:
    """Within float32, in which probabilities are kept."""
    torch.testing.assert_close(one, other.to(one), rtol=1e-4, atol=1e-6)


def test_words_may_be_watched_as_texts_or_ids() -> None:
    model = tiny.model()
    one, several = LENS(model, PROMPT, watch="x"), LENS(model, PROMPT, watch=["x", "y"])
    ids = LENS(model, PROMPT, watch=[ord("x"), ord("y")])
    assert (one.tokens, several.tokens) == ((120,), (120, 121))
    assert torch.equal(ids.watched, several.watched)
    assert torch.equal(one.watched[..., 0], several.watched[..., 0])
    assert LENS(model, PROMPT).watched.shape == (3, 6, 0)
    with pytest.raises(TokenError, match="must be one token"):
        LENS(model, PROMPT, watch="xy")


def test_some_positions_are_those_of_the_whole() -> None:
    model = tiny.model("gpt2")
    whole, some = LENS(model, PROMPT, watch="x"), LENS(model, PROMPT, positions=[1, -1], watch="x")
    assert some.axes[1].labels == ("1", "5")
    for name, value in some.values().items():
        other = whole.values()[name][:, [1, 5]]
        torch.testing.assert_close(value, other, rtol=0, atol=1e-5)
    last = LENS(model, PROMPT, positions="last")
    assert last.entropy.shape == (3, 1)


def test_axes_fit_the_first_value_and_the_table_reads_it(tmp_path: Path) -> None:
    found = LENS(tiny.model(), PROMPT, top_k=2)
    first = next(iter(found.values().values()))
    assert tuple(len(axis.labels) for axis in found.axes) == first.shape == (3, 6, 2)
    rows = found.table().rows()
    assert len(rows) == 18
    assert rows[7]["site"] == "blocks.1.hook_resid_post"
    assert rows[7]["pos"] == "1"
    assert rows[7]["kl"] == float(found.kl[1, 1])
    read = wb.load_result(found.save(tmp_path / "lens.safetensors"))
    assert (read.kind, len(read.table().rows())) == ("LensReading", 36)


@kinds
def test_under_a_plan_it_reads_the_changed_stream(kind: str) -> None:
    model = tiny.model(kind)
    plan = [wb.Intervention("blocks.1.hook_mlp_out", wb.ops.zero())]
    plain, changed = LENS(model, PROMPT), LENS(model, PROMPT, plan=plan)
    tiny.close(plain.entropy[0], changed.entropy[0], 0)
    assert not torch.allclose(plain.entropy[1:], changed.entropy[1:])
    assert changed.checks[0].value == pytest.approx(0, abs=1e-6)
    assert plain.provenance != changed.provenance


def test_the_stream_before_a_block_is_the_one_after_the_last() -> None:
    model = tiny.model("gpt2")
    after = LENS(model, PROMPT, sites="blocks.0.hook_resid_post")
    before = LENS(model, PROMPT, sites="blocks.1.hook_resid_pre")
    assert torch.equal(after.entropy, before.entropy)
    assert bool(torch.isnan(torch.tensor(after.checks[0].value)))


@pytest.mark.parametrize(
    "site",
    ["blocks.0.attn.hook_z", "blocks.0.ln1.hook_normalized", "blocks.0.hook_attn_out",
     "ln_final.hook_normalized", "hook_embed"],
)  # fmt: skip
def test_it_refuses_what_is_not_the_stream(site: str) -> None:
    with pytest.raises(OptionError, match="sites must be places in the residual stream"):
        LENS(tiny.model("gpt2"), PROMPT, sites=site)


def test_it_refuses_several_prompts_and_no_tokens() -> None:
    with pytest.raises(OptionError, match="prompt must be a single one, got '2 prompts'"):
        LENS(tiny.model(), ["ab", "cd"])
    with pytest.raises(OptionError, match="top_k must be 1 or more, got 0"):
        LENS(tiny.model(), PROMPT, top_k=0)


def test_it_may_be_cancelled() -> None:
    def stop() -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        LENS(tiny.model(), PROMPT, check=stop)
