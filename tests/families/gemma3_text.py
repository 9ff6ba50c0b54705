"""Tiny Gemma 3s: windows by pattern and by name, both rotations scaled."""

from typing import Any

from tests import tiny
from tests.families import Example, around_zero, made

PLAIN: dict[str, Any] = {
    **tiny.LLAMA,
    "pad_token_id": None,
    "sliding_window": 4,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 6,
}
SLIDING = ["full_attention", "sliding_attention", "sliding_attention"]
ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "every other layer windowed": {},
    "windows by name": {"layer_types": SLIDING},
    "rotations": {"rope_parameters": ROPES},
    "a cap of logits": {"final_logit_softcapping": 3.0},
    "biases": {"attention_bias": True},
    "untied": {"tie_word_embeddings": False},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return around_zero(made(Gemma3TextConfig(**{**PLAIN, **changes}), Gemma3ForCausalLM))


EXAMPLE = Example(build, VARIANTS)
