"""Tiny first GPTs: every head count and activation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests import tiny
from tests.families import Example, made, normed_after
from workbench.models.families.openai_gpt import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": 32,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "three heads": {},
    "one head": {"n_head": 1},
    "eight heads": {"n_head": 8},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layer": 1},
    **{f"act {name}": {"afn": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face GPT with random weights."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    return made(OpenAIGPTConfig(**{**PLAIN, **changes}), OpenAIGPTLMHeadModel)


def original(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As the first files have them: no prefix, no unembedding, and masks."""
    short = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    found = {name: weight for name, weight in short.items() if name != "lm_head.weight"}
    for layer in range(3):
        found[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    return found


EXAMPLE = Example(build, VARIANTS, normed_after, spelling=original)
