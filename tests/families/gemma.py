"""Tiny Gemmas: biases on and off, untied, both spellings of the activation."""

from typing import Any

from tests import tiny
from tests.families import Example, around_zero, made

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
PLAIN: dict[str, Any] = {**tiny.LLAMA, "pad_token_id": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "biases": {"attention_bias": True},
    "untied": {"tie_word_embeddings": False},
    "gelu": {"hidden_act": "gelu"},
    "silu": {"hidden_act": "silu"},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "rope linear": {"rope_parameters": LINEAR},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import GemmaConfig, GemmaForCausalLM

    return around_zero(made(GemmaConfig(**{**PLAIN, **changes}), GemmaForCausalLM))


EXAMPLE = Example(build, VARIANTS)
