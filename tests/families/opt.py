"""Tiny OPTs: norms before, after, none and without weights; narrow vocabularies; no biases."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests import tiny
from tests.families import Example, Identity, made, normed_after
from workbench.models.config import ACTIVATIONS

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "ffn_dim": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
    "pad_token_id": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "norms before": {},
    "norms after": {"do_layer_norm_before": False},
    "as 350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "narrow vocabulary": {"word_embed_proj_dim": 16},
    "wide vocabulary": {"word_embed_proj_dim": 32, "tie_word_embeddings": False},
    "no last norm": {"_remove_final_layer_norm": True},
    "no biases": {"enable_bias": False},
    "norms without weights": {"layer_norm_elementwise_affine": False},
    "norms after, without weights": {
        "layer_norm_elementwise_affine": False,
        "do_layer_norm_before": False,
    },
    "one head": {"num_attention_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "one layer": {"num_hidden_layers": 1},
    **{f"act {name}": {"activation_function": name} for name in ACTIVATIONS},
}
AFTER = ("norms after", "as 350m", "norms after, without weights")


def build(**changes: Any) -> Any:
    """A Hugging Face OPT with random weights."""
    from transformers import OPTConfig, OPTForCausalLM

    return made(OPTConfig(**{**PLAIN, **changes}), OPTForCausalLM)


def original(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As the first files have them, without the prefix and the second name of the embedding."""
    short = {name.removeprefix("model."): weight for name, weight in weights.items()}
    return {name: weight for name, weight in short.items() if name != "lm_head.weight"}


IDENTITIES: dict[str, Identity] = dict.fromkeys(AFTER, normed_after)
EXAMPLE = Example(build, VARIANTS, identities=IDENTITIES, spelling=original)
