"""Tiny GPT-BigCodes: one key head or all, scaled or not, every activation."""

from typing import Any

from tests import tiny
from tests.families import Example, made
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "n_embd": 24,
    "n_inner": 40,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": 32,
    "pad_token_id": None,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "one key head": {},
    "as many key heads as heads": {"multi_query": False},
    "one head": {"n_head": 1},
    "eight heads": {"n_head": 8},
    "no scaling": {"scale_attn_weights": False},
    "inner size 4 x width": {"n_inner": None},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layer": 1},
    **{f"act {name}": {"activation_function": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face GPT-BigCode with random weights."""
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    return made(GPTBigCodeConfig(**{**PLAIN, **changes}), GPTBigCodeForCausalLM)


EXAMPLE = Example(build, VARIANTS)
