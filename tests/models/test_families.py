"""Configs of families: what is read, what is refused; parity is in tests/contracts."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.families.llama import LLAMA3
from workbench.core.errors import OptionError, UnknownConfigKeyError, UnknownNameError
from workbench.models.config import ACTIVATIONS, Config
from workbench.models.family import FAMILIES
from workbench.models.layers.positions import Rotary, rotary
from workbench.models.load import empty


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
        ({"rope_type": "axial"}, "'yarn', 'longrope', 'llama3', got 'axial'"),
        ({"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings of .* got None"),
        ({"rope_type": None}, "got None"),
        ({"rope_type": {"full_attention": {}}}, "must be one of"),
        ({"type": "dynamic", "factor": 2.0}, "max_position_embeddings must be given with"),
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
