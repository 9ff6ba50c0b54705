"""Tiny CodeGens: head counts, shares of the rotation, inner sizes, activations."""

from typing import Any

from tests import tiny
from tests.families import JOINT, Example, made, side_by_side
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "n_embd": 32,
    "n_inner": 40,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 32,
    "n_ctx": 32,
    "rotary_dim": 4,
    "pad_token_id": None,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "four heads": {},
    "eight heads": {"n_head": 8},
    "all rotated": {"rotary_dim": 8},
    "inner size 4 x width": {"n_inner": None},
    "tied": {"tie_word_embeddings": True},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layer": 1},
    **{f"act {name}": {"activation_function": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face CodeGen with random weights."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    return made(CodeGenConfig(**{**PLAIN, **changes}), CodeGenForCausalLM)


EXAMPLE = Example(build, VARIANTS, side_by_side, copied=JOINT)
