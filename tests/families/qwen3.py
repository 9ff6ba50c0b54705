"""Tiny Qwen3s: q/k norms, biases on and off, windows."""

from typing import Any

from tests import tiny
from tests.families import Example, made
from tests.families.llama import YARN

PLAIN: dict[str, Any] = {**tiny.LLAMA}
WINDOW = {"use_sliding_window": True, "sliding_window": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "biases": {"attention_bias": True},
    "window from a layer on": {**WINDOW, "max_window_layers": 1},
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
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return made(Qwen3Config(**{**PLAIN, **changes}), Qwen3ForCausalLM)


EXAMPLE = Example(build, VARIANTS)
