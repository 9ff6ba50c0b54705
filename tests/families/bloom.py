"""Tiny BLOOMs: head counts that are powers of two and that are not, tied or not."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests import tiny
from tests.families import JOINT, Example, made

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
    "pad_token_id": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "four heads": {},
    "three heads": {"n_head": 3},
    "six heads": {"n_head": 6},
    "twelve heads": {"n_head": 12},
    "one head": {"n_head": 1},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_epsilon": 0.1},
    "trained on two": {"pretraining_tp": 2},
    "one layer": {"n_layer": 1},
}


def build(**changes: Any) -> Any:
    """A Hugging Face BLOOM with random weights."""
    from transformers import BloomConfig, BloomForCausalLM

    return made(BloomConfig(**{**PLAIN, **changes}), BloomForCausalLM)


def original(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As the first files have them, without the prefix and the second name of the embedding."""
    short = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    return {name: weight for name, weight in short.items() if name != "lm_head.weight"}


EXAMPLE = Example(build, VARIANTS, spelling=original, copied=JOINT)
