"""Tiny GPT-2s: every head count, inner size, scaling and activation."""

from typing import Any

from tests import tiny
from tests.families import Example, made
from workbench.models.config import ACTIVATIONS

VARIANTS: dict[str, dict[str, Any]] = {
    "three heads": {},
    "one head": {"n_head": 1},
    "eight heads": {"n_head": 8},
    "inner size 4 x width": {"n_inner": None},
    "odd inner size": {"n_inner": 7},
    "inverse layer scaling": {"scale_attn_by_inverse_layer_idx": True},
    "no scaling": {"scale_attn_weights": False},
    "upcast": {"reorder_and_upcast_attn": True},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layer": 1},
    **{f"act {name}": {"activation_function": name} for name in ACTIVATIONS},
}


def build(**changes: Any) -> Any:
    """A Hugging Face GPT-2 with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return made(GPT2Config(**{**tiny.GPT2, **changes}), GPT2LMHeadModel)


EXAMPLE = Example(build, VARIANTS)
