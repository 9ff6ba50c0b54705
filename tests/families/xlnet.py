"""Tiny XLNets: clamped distances, each head.

Attention of one way is in `tests/models/test_two_stream.py`: transformers' own fails there on more
rows than one, if they are masked.
"""

from typing import Any

import torch

from tests.families import Example, kind_named, made, normed_after

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "d_model": 24,
    "n_layer": 3,
    "n_head": 3,
    "d_inner": 40,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "both ways": {},
    "short distances": {"clamp_len": 3},
    "one head": {"n_head": 1},
    "one layer": {"n_layer": 1},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_eps": 0.1},
    "act relu": {"ff_activation": "relu"},
    "act silu": {"ff_activation": "silu"},
    "act gelu_new": {"ff_activation": "gelu_new"},
    "no head": {"head": "Model"},
    "classes of texts": {"head": "ForSequenceClassification", "num_labels": 5},
    "classes of the first token": {
        "head": "ForSequenceClassification",
        "num_labels": 5,
        "summary_type": "first",
        "summary_activation": "relu",
    },
    "classes without a projection": {
        "head": "ForSequenceClassification",
        "summary_use_proj": False,
        "summary_activation": "",
        "num_labels": 4,
    },
    "classes of tokens": {"head": "ForTokenClassification", "num_labels": 5},
}


def build(*, head: str = "LMHeadModel", **changes: Any) -> Any:
    """A Hugging Face XLNet with random weights; matrices by head are as large as all others."""
    from transformers import XLNetConfig

    model = made(XLNetConfig(**{**PLAIN, **changes}), kind_named(f"XLNet{head}"))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 3 and len(weight) == model.config.d_model:
                weight.mul_((min(weight.shape[1:]) / len(weight)) ** 0.5)
    return model


EXAMPLE = Example(build, VARIANTS, causal=False, identity=normed_after)
