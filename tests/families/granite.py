"""Tiny Granites: every multiplier."""

from typing import Any

from tests import tiny
from tests.families import Example, made

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
PLAIN: dict[str, Any] = {
    **{key: value for key, value in tiny.LLAMA.items() if key != "head_dim"},
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "multiplied": {},
    "plain": {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "another eps": {"rms_norm_eps": 0.1},
    "gelu": {"hidden_act": "gelu"},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "rope linear": {"rope_parameters": LINEAR},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import GraniteConfig, GraniteForCausalLM

    return made(GraniteConfig(**{**PLAIN, **changes}), GraniteForCausalLM)


EXAMPLE = Example(build, VARIANTS)
