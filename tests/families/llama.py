"""Tiny Llamas: grouped heads, odd sizes, biases, every scaling of the rotation."""

from typing import Any

from tests import tiny
from tests.families import Example, made
from workbench.models.config import ACTIVATIONS

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 2.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [1.5, 4.0, 9.0, 20.0],
    "original_max_position_embeddings": 16,
}
VARIANTS: dict[str, dict[str, Any]] = {
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
    "rope yarn": {"rope_parameters": YARN},
    "rope longrope": {"rope_parameters": LONGROPE},
    "rope dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    },
    "another eps": {"rms_norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    **{f"act {name}": {"hidden_act": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return made(LlamaConfig(**{**tiny.LLAMA, **changes}), LlamaForCausalLM)


EXAMPLE = Example(build, VARIANTS)
