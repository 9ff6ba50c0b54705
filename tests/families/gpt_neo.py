"""Tiny GPT-Neos: windows in all, some and no layers; sizes and activations."""

from typing import Any

from tests import tiny
from tests.families import Example, made
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_layers": 3,
    "num_heads": 3,
    "max_position_embeddings": 32,
    "attention_types": [[["global", "local", "global"], 1]],
    "window_size": 4,
    "pad_token_id": None,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "a window in every other layer": {},
    "windows first": {"attention_types": [[["local"], 2], [["global"], 1]]},
    "windows everywhere": {"attention_types": [[["local"], 3]], "window_size": 3},
    "no windows": {"attention_types": [[["global"], 3]]},
    "wide windows": {"window_size": 20},
    "one head": {"num_heads": 1},
    "inner size 4 x width": {"intermediate_size": None},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"num_layers": 1, "attention_types": [[["local"], 1]]},
    **{f"act {name}": {"activation_function": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face GPT-Neo with random weights."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    return made(GPTNeoConfig(**{**PLAIN, **changes}), GPTNeoForCausalLM)


EXAMPLE = Example(build, VARIANTS)
