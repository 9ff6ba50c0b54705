"""Tiny StableLMs: blocks side by side or not, biases, q/k norms, rotations."""

from typing import Any

from tests import tiny
from tests.families import SCALED, Example, Identity, made, side_by_side
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "num_key_value_heads": 4,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "a quarter rotated": {},
    "half rotated": {"partial_rotary_factor": 0.5},
    "all rotated": {"partial_rotary_factor": 1.0},
    "side by side": {"use_parallel_residual": True},
    "biases": {"use_qkv_bias": True},
    "q/k norms": {"qk_layernorm": True},
    "grouped": {"num_key_value_heads": 2},
    "12b": {"num_key_value_heads": 2, "qk_layernorm": True, "use_parallel_residual": True},
    "tied": {"tie_word_embeddings": True},
    "another eps": {"layer_norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    **{
        f"rope {name}": {"rope_parameters": {**options, "partial_rotary_factor": 0.5}}
        for name, options in SCALED.items()
    },
    **{f"act {name}": {"hidden_act": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face StableLM with random weights."""
    from transformers import StableLmConfig, StableLmForCausalLM

    return made(StableLmConfig(**{**PLAIN, **changes}), StableLmForCausalLM)


IDENTITIES: dict[str, Identity] = dict.fromkeys(("side by side", "12b"), side_by_side)
EXAMPLE = Example(build, VARIANTS, identities=IDENTITIES)
