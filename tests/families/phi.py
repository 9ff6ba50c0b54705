"""Tiny Phis: grouped heads, q/k norms, every share and scaling of the rotation."""

from typing import Any

from tests import tiny
from tests.families import SCALED, Example, made, side_by_side
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "half rotated": {},
    "a quarter rotated": {"partial_rotary_factor": 0.25},
    "all rotated": {"partial_rotary_factor": 1.0},
    "q/k norms": {"qk_layernorm": True},
    "grouped": {"num_key_value_heads": 2},
    "grouped, with q/k norms": {"num_key_value_heads": 1, "qk_layernorm": True},
    "odd heads": {"hidden_size": 40, "num_attention_heads": 5},
    "tied": {"tie_word_embeddings": True},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    "another eps": {"layer_norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    **{
        f"rope {name}": {"rope_parameters": {**options, "partial_rotary_factor": 0.5}}
        for name, options in SCALED.items()
    },
    **{f"act {name}": {"hidden_act": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face Phi with random weights."""
    from transformers import PhiConfig, PhiForCausalLM

    return made(PhiConfig(**{**PLAIN, **changes}), PhiForCausalLM)


EXAMPLE = Example(build, VARIANTS, side_by_side)
