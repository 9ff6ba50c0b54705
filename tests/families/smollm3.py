"""Tiny SmolLM3s: layers that turn and layers that do not, windows, biases."""

from typing import Any

from tests import tiny
from tests.families import Example, made
from tests.families.llama import YARN

PLAIN: dict[str, Any] = {
    **{key: value for key, value in tiny.LLAMA.items() if key != "head_dim"},
    "pad_token_id": None,
    "no_rope_layer_interval": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "every other layer": {},
    "layers by name": {"no_rope_layers": [0, 1, 0]},
    "windows where none turns": {"use_sliding_window": True, "sliding_window": 3},
    "windows by name": {
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "biases": {"attention_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "another eps": {"rms_norm_eps": 0.1},
    "rope yarn": {"rope_parameters": YARN},
    "gelu": {"hidden_act": "gelu_pytorch_tanh"},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    return made(SmolLM3Config(**{**PLAIN, **changes}), SmolLM3ForCausalLM)


EXAMPLE = Example(build, VARIANTS)
