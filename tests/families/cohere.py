"""Tiny Command Rs: q/k norms on and off."""

from typing import Any

from tests import tiny
from tests.families import Example, made, side_by_side

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
PLAIN: dict[str, Any] = {
    **{key: value for key, value in tiny.LLAMA.items() if key != "head_dim"},
    "pad_token_id": None,
    "logit_scale": 0.5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "q/k norms": {"use_qk_norm": True},
    "biases": {"attention_bias": True},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_eps": 0.1},
    "gelu": {"hidden_act": "gelu"},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "rope linear": {"rope_parameters": LINEAR},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import CohereConfig, CohereForCausalLM

    return made(CohereConfig(**{**PLAIN, **changes}), CohereForCausalLM)


EXAMPLE = Example(build, VARIANTS, identity=side_by_side)
