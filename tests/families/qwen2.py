"""Tiny Qwen2s: no window, one from a layer on, one for the layers named."""

from typing import Any

from tests import tiny
from tests.families import Example, made
from tests.families.llama import YARN

PLAIN: dict[str, Any] = {key: value for key, value in tiny.LLAMA.items() if key != "head_dim"}
WINDOW = {"use_sliding_window": True, "sliding_window": 3}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
VARIANTS: dict[str, dict[str, Any]] = {
    "no window": {},
    "window from a layer on": {**WINDOW, "max_window_layers": 1},
    "windowed layers by name": {**WINDOW, "layer_types": KINDS},
    "window not used": {"use_sliding_window": False, "sliding_window": 3},
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
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return made(Qwen2Config(**{**PLAIN, **changes}), Qwen2ForCausalLM)


EXAMPLE = Example(build, VARIANTS)
