"""Tiny Phi-3s: grouped heads, windows, every rotation it has."""

from typing import Any

from tests import tiny
from tests.families import Example, made
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
LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [1.5, 4.0, 9.0, 20.0],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "windows": {"sliding_window": 4},
    "wide windows": {"sliding_window": 100},
    "three quarters rotated": {
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}
    },
    "long rotation": {"rope_parameters": LONG, "original_max_position_embeddings": 16},
    "long rotation, by its older name": {
        "rope_scaling": {**LONG, "rope_type": "su", "original_max_position_embeddings": 16}
    },
    "tied": {"tie_word_embeddings": True},
    "another eps": {"rms_norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    **{f"act {name}": {"hidden_act": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face Phi-3 with random weights."""
    from transformers import Phi3Config, Phi3ForCausalLM

    return made(Phi3Config(**{**PLAIN, **changes}), Phi3ForCausalLM)


EXAMPLE = Example(build, VARIANTS)
