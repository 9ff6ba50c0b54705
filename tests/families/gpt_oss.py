"""Tiny GPT-OSSs: sinks, windows, clamped gates."""

from typing import Any

from tests import tiny
from tests.families import Example, made

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
PLAIN: dict[str, Any] = {
    **tiny.LLAMA,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
    "swiglu_limit": 0.8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "yarn": {},
    "no biases": {"attention_bias": False},
    "no windows": {"layer_types": ["full_attention"] * 3},
    "window beyond the context": {"sliding_window": 4096},
    "another gate": {"swiglu_limit": 7.0, "swiglu_alpha": 0.5},
    "tied": {"tie_word_embeddings": True},
    "one expert": {"num_experts_per_tok": 1},
    "all experts": {"num_experts_per_tok": 5},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "rope linear": {"rope_parameters": LINEAR},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import GptOssConfig, GptOssForCausalLM

    return made(GptOssConfig(**{**PLAIN, **changes}), GptOssForCausalLM)


EXAMPLE = Example(build, VARIANTS)
