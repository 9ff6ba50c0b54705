"""Tiny GPT-NeoXs: blocks side by side or not, every share and scaling of the rotation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests import tiny
from tests.families import JOINT, SCALED, Example, made, residual, side_by_side
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "rotary_pct": 0.5,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "side by side": {},
    "one after the other": {"use_parallel_residual": False},
    "a quarter rotated": {"rotary_pct": 0.25},
    "all rotated": {"rotary_pct": 1.0},
    "one head": {"num_attention_heads": 1},
    "no attention biases": {"attention_bias": False},
    "tied": {"tie_word_embeddings": True},
    "rotary base": {"rotary_emb_base": 77},
    "another eps": {"layer_norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    **{
        f"rope {name}": {"rope_scaling": {**options, "partial_rotary_factor": 0.5}}
        for name, options in SCALED.items()
    },
    **{f"act {name}": {"hidden_act": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face GPT-NeoX with random weights."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return made(GPTNeoXConfig(**{**PLAIN, **changes}), GPTNeoXForCausalLM)


def original(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As Pythia's files have them: another name of the unembedding, and buffers."""
    found = {name.replace("lm_head", "embed_out"): w for name, w in weights.items()}
    for layer in range(3):
        at = f"gpt_neox.layers.{layer}.attention"
        found[f"{at}.bias"] = torch.ones(1, 1, 32, 32).tril().bool()
        found[f"{at}.masked_bias"] = torch.tensor(-1e9)
        found[f"{at}.rotary_emb.inv_freq"] = torch.ones(4)
    return found


IDENTITIES = {"one after the other": residual}
EXAMPLE = Example(build, VARIANTS, side_by_side, IDENTITIES, spelling=original, copied=JOINT)
