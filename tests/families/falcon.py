"""Tiny Falcons: 7b, 40b, 11b and rw, each with what may differ within it."""

from typing import Any

from tests import tiny
from tests.families import SCALED, Example, Identity, made, residual, side_by_side
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "ffn_hidden_size": 40,
    "max_position_embeddings": 32,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
NEW = {"new_decoder_architecture": True, "num_attention_heads": 6, "num_kv_heads": 2}
RW = {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "7b": {},
    "40b": NEW,
    "11b: one norm": {**NEW, "num_ln_in_parallel_attn": 1},
    "rw": RW,
    "rw, four heads": {**RW, "num_attention_heads": 4},
    "rw, rotated": {**RW, "alibi": False},
    "7b with alibi": {"alibi": True},
    "40b with alibi": {**NEW, "alibi": True},
    "one after the other": {"parallel_attn": False},
    "as many key heads as heads": {"multi_query": False},
    "biases": {"bias": True},
    "40b with biases": {**NEW, "bias": True},
    "untied": {"tie_word_embeddings": False},
    "inner size 4 x width": {"ffn_hidden_size": None},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"num_hidden_layers": 1},
    **{f"rope {name}": {"rope_parameters": options} for name, options in SCALED.items()},
    **{f"act {name}": {"activation": name} for name in ACTIVATIONS},
}
# Its eager attention adds ALiBi twice, once in the mask; the other way gives no patterns.
UNLIKE = frozenset(name for name, changes in VARIANTS.items() if changes.get("alibi"))


def build(**changes: Any) -> Any:
    """A Hugging Face Falcon with random weights."""
    from transformers import FalconConfig, FalconForCausalLM

    attention = "sdpa" if changes.get("alibi") else "eager"
    return made(FalconConfig(**{**PLAIN, **changes}), FalconForCausalLM, attention=attention)


AFTER = ("rw", "rw, four heads", "rw, rotated", "one after the other")
IDENTITIES: dict[str, Identity] = dict.fromkeys(AFTER, residual)
EXAMPLE = Example(build, VARIANTS, side_by_side, IDENTITIES, UNLIKE)
