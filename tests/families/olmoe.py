"""Tiny OLMoEs: weights made to sum to 1 or not."""

from typing import Any

from tests import tiny
from tests.families import Example, made

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
PLAIN: dict[str, Any] = {
    **{key: value for key, value in tiny.LLAMA.items() if key != "head_dim"},
    "pad_token_id": None,
    "num_experts": 5,
    "num_experts_per_tok": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "normalised": {"norm_topk_prob": True},
    "biases": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "gelu": {"hidden_act": "gelu"},
    "one expert": {"num_experts_per_tok": 1},
    "all experts": {"num_experts_per_tok": 5},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "rope linear": {"rope_parameters": LINEAR},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return made(OlmoeConfig(**{**PLAIN, **changes}), OlmoeForCausalLM)


EXAMPLE = Example(build, VARIANTS)
