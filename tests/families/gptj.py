"""Tiny GPT-Js: every head count, share of the rotation, inner size and activation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests import tiny
from tests.families import Example, made, side_by_side
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "n_embd": 24,
    "n_inner": 40,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": 32,
    "rotary_dim": 4,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "half rotated": {},
    "all rotated": {"rotary_dim": 8},
    "one head": {"n_head": 1},
    "inner size 4 x width": {"n_inner": None},
    "odd inner size": {"n_inner": 7},
    "tied": {"tie_word_embeddings": True},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layer": 1},
    **{f"act {name}": {"activation_function": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face GPT-J with random weights."""
    from transformers import GPTJConfig, GPTJForCausalLM

    return made(GPTJConfig(**{**PLAIN, **changes}), GPTJForCausalLM)


def original(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """With the masks that older files carry."""
    found = dict(weights)
    for layer in range(3):
        found[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril().bool()
        found[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    return found


EXAMPLE = Example(build, VARIANTS, side_by_side, spelling=original)
