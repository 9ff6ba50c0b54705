"""Families equal transformers on tiny random configs, biases and norm weights drawn too."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import OptionError, UnknownConfigKeyError, UnknownNameError
from workbench.models.config import ACTIVATIONS, Config
from workbench.models.family import FAMILIES
from workbench.models.layers.positions import Rotary, rotary
from workbench.models.load import empty

TOLERANCE = 1e-5  # float32: the same sums in another order
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMAS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "odd heads": {
        "hidden_size": 25,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 4,
    },
    "odd groups": {
        "hidden_size": 27,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 2,
    },
    "wide heads": {"head_dim": 14},
    "head_dim from the width": {"head_dim": None},
    "attention biases": {"attention_bias": True},
    "mlp biases": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    "rope linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}},
    "rope llama3": {"rope_parameters": LLAMA3},
    "another eps": {"rms_norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    **{f"act {name}": {"hidden_act": name} for name in ACTIVATIONS},
}
GPT2S: dict[str, dict[str, Any]] = {
    "three heads": {},
    "one head": {"n_head": 1},
    "eight heads": {"n_head": 8},
    "inner size 4 x width": {"n_inner": None},
    "odd inner size": {"n_inner": 7},
    "inverse layer scaling": {"scale_attn_by_inverse_layer_idx": True},
    "no scaling": {"scale_attn_weights": False},
    "upcast": {"reorder_and_upcast_attn": True},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layer": 1},
    **{f"act {name}": {"activation_function": name} for name in ACTIVATIONS},
}
CASES = [
    *(("llama", name, changes) for name, changes in LLAMAS.items()),
    *(("gpt2", name, changes) for name, changes in GPT2S.items()),
]
variants = pytest.mark.parametrize(
    ("kind", "changes"),
    [(kind, changes) for kind, _, changes in CASES],
    ids=[f"{kind}: {name}" for kind, name, _ in CASES],
)


@variants
def test_it_equals_transformers(kind: str, changes: dict[str, Any]) -> None:
    theirs = tiny.hf(kind, **changes)
    ours, ids = wb.load(theirs), tiny.tokens(2, 11)
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True, output_attentions=True)
    record = ["blocks.*.hook_resid_pre", "blocks.*.hook_resid_post", "blocks.*.attn.hook_pattern"]
    trace = wb.run(ours, ids, record=record)
    tiny.close(wb.run(ours, ids).logits, expected.logits, TOLERANCE)
    tiny.close(trace.logits, expected.logits, TOLERANCE)
    n_layers = ours.sizes.n_layers
    tiny.close(trace["blocks.0.hook_resid_pre"], expected.hidden_states[0], TOLERANCE)
    for layer in range(n_layers):
        pattern = trace[f"blocks.{layer}.attn.hook_pattern"]
        tiny.close(pattern, expected.attentions[layer], TOLERANCE)
        if layer < n_layers - 1:  # their last hidden state is after the final norm
            post = trace[f"blocks.{layer}.hook_resid_post"]
            tiny.close(post, expected.hidden_states[layer + 1], TOLERANCE)


@variants
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(
    kind: str, changes: dict[str, Any], side: Any
) -> None:
    theirs = tiny.hf(kind, **changes)
    ours = wb.load(theirs)
    rows = [tiny.tokens(length, seed=length).tolist() for length in (9, 4, 1)]
    trace = wb.run(ours, rows, padding_side=side)
    mask = trace.batch.real
    assert mask is not None
    with torch.no_grad():
        expected = theirs(
            trace.batch.tokens,
            attention_mask=mask.long(),
            position_ids=trace.batch.positions,
        ).logits
    tiny.close(trace.logits[mask], expected[mask], TOLERANCE)
    for row, ids in enumerate(rows):
        tiny.close(trace.logits[row][mask[row]], wb.run(ours, [ids]).logits[0], TOLERANCE)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_transformers_calls_so(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    tiny.close(ACTIVATIONS[name](x), ACT2FN[name](x), 1e-6)  # gelu_fast rounds its constants


def test_float64_equals_transformers_in_float64() -> None:
    theirs = tiny.hf_gpt2().double()  # their RMSNorm computes in float32 whatever it is given
    ids = tiny.tokens(1, 9)
    with torch.no_grad():
        expected = theirs(ids).logits
    tiny.close(wb.run(wb.load(theirs), ids).logits, expected, 1e-9)


# --- rotary -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "one of 'default', 'linear', 'llama3', got 'yarn'"),
        ({"rope_type": None}, "got None"),
        ({"rope_type": {"full_attention": {}}}, "must be one of"),
        ({"type": "dynamic", "factor": 2.0}, "got 'dynamic'"),
        ({"rope_type": "linear"}, "factor of rope_type 'linear' must be a number above 0"),
        ({"rope_type": "linear", "factor": "2"}, "a number above 0, got '2'"),
        ({"rope_type": "linear", "factor": float("nan")}, "a number above 0, got nan"),
        ({"rope_type": "default", "rope_theta": 0.0}, "rope_theta of rope_type 'default'"),
        ({k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "described by"),
        ({"full_attention": {"rope_theta": 3.0}}, "described by"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_rotary_parameters_that_nobody_reads_are_refused(
    parameters: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        rotary(8, parameters)


def cosines(turning: Rotary) -> Tensor:
    """Of the first few positions."""
    return turning.angles(torch.arange(6)[None], torch.float32)[0]


def test_rotary_parameters_at_their_default_are_not_in_the_way() -> None:
    plain = rotary(8, {"rope_theta": 100.0})
    same = rotary(8, {"rope_theta": 100.0, "partial_rotary_factor": 1.0, "factor": None})
    at = torch.arange(5)[None]
    for one, other in zip(
        plain.angles(at, torch.float32), same.angles(at, torch.float32), strict=True
    ):
        assert torch.equal(one, other)


def test_an_odd_head_cannot_be_turned() -> None:
    with pytest.raises(OptionError, match="head_dim must be even: rotary positions turn pairs"):
        rotary(7, {})


def test_older_and_newer_configs_say_the_same() -> None:
    new = build("llama", rope_parameters={"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0})
    old = build("llama", rope_theta=50.0, rope_scaling={"type": "linear", "factor": 3.0})
    at = torch.arange(6)[None]
    assert new.rotary is not None
    assert old.rotary is not None
    assert torch.equal(
        new.rotary.angles(at, torch.float32)[0], old.rotary.angles(at, torch.float32)[0]
    )
    with pytest.raises(OptionError, match="'rope_scaling' must be a table, got 'linear'"):
        build("llama", rope_scaling="linear")


# --- configs ------------------------------------------------------------------------------------


def config(kind: str, **changes: Any) -> dict[str, Any]:
    """A family's tiny config as a file has it, with changes; None takes a key away."""
    plain = {**(tiny.LLAMA if kind == "llama" else tiny.GPT2), "model_type": kind, **changes}
    return {key: value for key, value in plain.items() if value is not None}


def build(kind: str, **changes: Any) -> Any:
    """The empty stack of a changed config."""
    return empty(FAMILIES[kind], Config(kind, config(kind, **changes)))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_an_unknown_key_is_refused_unless_at_its_default(kind: str) -> None:
    with pytest.raises(UnknownConfigKeyError, match=f"{kind}: config key 'sliding_window' = 4096"):
        build(kind, sliding_window=4096)
    with pytest.raises(UnknownConfigKeyError, match="'chunk_size_feed_forward' = 2"):
        build(kind, chunk_size_feed_forward=2)
    with pytest.raises(UnknownConfigKeyError, match="'add_cross_attention' = True"):
        build(kind, add_cross_attention=True)
    build(kind, chunk_size_feed_forward=0, add_cross_attention=False, use_cache=False)


def test_interleaved_rotation_is_refused() -> None:
    build("llama", rope_interleaved=False)
    with pytest.raises(UnknownConfigKeyError, match="rope_interleaved"):
        build("llama", rope_interleaved=True)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"hidden_size": 0}, "'hidden_size' must be a number above 0, got 0"),
        ("llama", {"hidden_size": "24"}, "got '24'"),
        ("llama", {"num_hidden_layers": None}, "'num_hidden_layers' must be .* got None"),
        ("llama", {"num_hidden_layers": True}, "got True"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads must be a multiple of 3, got 4"),
        ("llama", {"rms_norm_eps": "x"}, "'rms_norm_eps' must be a number, got 'x'"),
        ("llama", {"rms_norm_eps": float("inf")}, "must be a finite number, got inf"),
        ("llama", {"rms_norm_eps": float("nan")}, "must be a finite number, got nan"),
        ("llama", {"attention_bias": 1}, "'attention_bias' must be true or false, got 1"),
        ("gpt2", {"n_head": 5}, "n_embd must be a multiple of n_head = 5, got 24"),
        ("gpt2", {"scale_attn_weights": "yes"}, "must be true or false"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_that_cannot_be_is_named(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "key"), [("llama", "hidden_act"), ("gpt2", "activation_function")]
)
def test_an_unknown_activation_names_the_nearest(kind: str, key: str) -> None:
    with pytest.raises(UnknownNameError, match=r"activation function named 'gelu_neww'.*gelu_new"):
        build(kind, **{key: "gelu_neww"})


def test_gpt2_reads_the_context_under_both_names() -> None:
    assert build("gpt2", n_positions=None, n_ctx=17).sizes.n_ctx == 17
    assert build("gpt2", n_positions=18, n_ctx=17).sizes.n_ctx == 18


def test_original_gpt2_checkpoints_leave_out_the_prefix_and_keep_masks() -> None:
    theirs = tiny.hf_gpt2()
    weights: dict[str, Tensor] = {
        name.removeprefix("transformer."): tensor
        for name, tensor in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    for layer in range(3):
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    from workbench.models.load import assemble

    ours, ids = assemble(config("gpt2"), weights, name="old"), tiny.tokens(1, 5)
    assert torch.equal(wb.run(ours, ids).logits, wb.run(wb.load(theirs), ids).logits)
