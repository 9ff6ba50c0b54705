"""Tiny OLMo 2s."""

from typing import Any

from tests import tiny
from tests.families import Example, made

LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
PLAIN: dict[str, Any] = {
    **{key: value for key, value in tiny.LLAMA.items() if key != "head_dim"},
    "pad_token_id": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "biases": {"attention_bias": True},
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
    from transformers import Olmo2Config, Olmo2ForCausalLM

    return made(Olmo2Config(**{**PLAIN, **changes}), Olmo2ForCausalLM)


EXAMPLE = Example(build, VARIANTS)
