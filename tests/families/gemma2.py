"""Tiny Gemma 2s: with and without each cap, windows of each kind."""

from typing import Any

from tests import tiny
from tests.families import Example, around_zero, made

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
PLAIN: dict[str, Any] = {
    **tiny.LLAMA,
    "pad_token_id": None,
    "sliding_window": 4,
    "query_pre_attn_scalar": 6,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
FULL = ["full_attention"] * 3
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "no cap of scores": {"attn_logit_softcapping": None},
    "no cap of logits": {"final_logit_softcapping": None},
    "no windows": {"layer_types": FULL},
    "window beyond the context": {"sliding_window": 4096},
    "biases": {"attention_bias": True},
    "untied": {"tie_word_embeddings": False},
    "silu": {"hidden_activation": "silu"},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "rope linear": {"rope_parameters": LINEAR},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return around_zero(made(Gemma2Config(**{**PLAIN, **changes}), Gemma2ForCausalLM))


EXAMPLE = Example(build, VARIANTS)
