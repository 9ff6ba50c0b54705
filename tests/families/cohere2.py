"""Tiny Command R7Bs: windowed layers turn, others do not."""

from typing import Any

from tests import tiny
from tests.families import Example, made, side_by_side

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
PLAIN: dict[str, Any] = {
    **{key: value for key, value in tiny.LLAMA.items() if key != "head_dim"},
    "pad_token_id": None,
    "logit_scale": 0.5,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "windowed": {},
    "windows by default": {"layer_types": None},
    "window beyond the context": {"sliding_window": 4096},
    "biases": {"attention_bias": True},
    "untied": {"tie_word_embeddings": False},
    "gelu": {"hidden_act": "gelu"},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "rope linear": {"rope_parameters": LINEAR},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import Cohere2Config, Cohere2ForCausalLM

    return made(Cohere2Config(**{**PLAIN, **changes}), Cohere2ForCausalLM)


EXAMPLE = Example(build, VARIANTS, identity=side_by_side)
