"""Tiny Mistrals: windows shorter than a prompt, of one token, and longer than any."""

from typing import Any

from tests import tiny
from tests.families import Example, made
from tests.families.llama import YARN

PLAIN: dict[str, Any] = {**tiny.LLAMA, "pad_token_id": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "window of 4": {"sliding_window": 4},
    "no window": {"sliding_window": None},
    "window of 1": {"sliding_window": 1},
    "window beyond the context": {"sliding_window": 4096},
    "head_dim from the width": {"head_dim": None},
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
    from transformers import MistralConfig, MistralForCausalLM

    return made(MistralConfig(**{**PLAIN, **changes}), MistralForCausalLM)


EXAMPLE = Example(build, VARIANTS)
