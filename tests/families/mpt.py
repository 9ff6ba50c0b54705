"""Tiny MPTs: head counts that are powers of two and that are not, clipped, scaled, tied or not."""

from typing import Any

from tests import tiny
from tests.families import Example, made

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "d_model": 24,
    "n_layers": 3,
    "n_heads": 4,
    "max_seq_len": 32,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "four heads": {},
    "three heads": {"n_heads": 3},
    "six heads": {"n_heads": 6},
    "twelve heads": {"n_heads": 12},
    "one head": {"n_heads": 1},
    "clipped": {"attn_config": {"clip_qkv": 0.5}},
    "another scale": {"attn_config": {"softmax_scale": 0.7}},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layers": 1},
}


def build(**changes: Any) -> Any:
    """A Hugging Face MPT with random weights."""
    from transformers import MptConfig, MptForCausalLM

    return made(MptConfig(**{**PLAIN, **changes}), MptForCausalLM)


EXAMPLE = Example(build, VARIANTS)
