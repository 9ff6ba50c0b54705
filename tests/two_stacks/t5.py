"""Tiny T5s: 1.0 and 1.1, tied and not, scaled and not, few and many buckets, unequal stacks."""

from typing import Any

import torch

from tests import tiny
from tests.families import Example, made

T5: dict[str, Any] = {
    "vocab_size": 258,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,  # d_kv x num_heads is not d_model
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "pad_token_id": 0,
    "eos_token_id": 256,
    "decoder_start_token_id": 257,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "1.0": {},
    "1.1, gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "1.1, untied": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "own_unembedding": True,
    },
    "gated silu": {"feed_forward_proj": "gated-silu"},
    "exact gelu": {"feed_forward_proj": "gelu"},
    "one head": {"num_heads": 1},
    "three heads": {"num_heads": 3},
    "as many layers": {"num_decoder_layers": None},
    "one layer each": {"num_layers": 1, "num_decoder_layers": 1},
    "an odd number of buckets": {"relative_attention_num_buckets": 7},
    "32 buckets": {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    "another eps": {"layer_norm_epsilon": 0.1},
}


def build(*, own_unembedding: bool = False, **changes: Any) -> Any:
    """A Hugging Face T5 with random weights; 1.1's checkpoints have an unembedding of their own."""
    from transformers import T5Config, T5ForConditionalGeneration

    model = made(T5Config(**{**T5, **changes}), T5ForConditionalGeneration)
    if own_unembedding:
        weight = model.lm_head.weight
        model.lm_head.weight = torch.nn.Parameter(0.2 * tiny.normal(*weight.shape, seed=3))
    return model


EXAMPLE = Example(build, VARIANTS)
