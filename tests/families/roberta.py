"""Tiny Robertas: positions from the id of pads, and each head."""

from typing import Any

from tests.families import Example, kind_named, made, normed_after

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "type_vocab_size": 3,
    "pad_token_id": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "masked": {},
    "one head": {"num_attention_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_eps": 0.1},
    "pads elsewhere": {"pad_token_id": 3},
    "one layer": {"num_hidden_layers": 1},
    "act relu": {"hidden_act": "relu"},
    "no head": {"head": "Model"},
    "classes of texts": {"head": "ForSequenceClassification", "num_labels": 5},
    "classes of tokens": {"head": "ForTokenClassification", "num_labels": 5},
}


def build(*, head: str = "ForMaskedLM", **changes: Any) -> Any:
    """A Hugging Face Roberta with random weights."""
    from transformers import RobertaConfig

    return made(RobertaConfig(**{**PLAIN, **changes}), kind_named(f"Roberta{head}"))


EXAMPLE = Example(build, VARIANTS, causal=False, identity=normed_after, after_padding=True)
