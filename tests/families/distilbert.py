"""Tiny DistilBERTs: each head."""

from typing import Any

from tests.families import Example, kind_named, made, normed_after

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "dim": 24,
    "hidden_dim": 40,
    "n_layers": 3,
    "n_heads": 3,
    "max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "masked": {},
    "one head": {"n_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "one layer": {"n_layers": 1},
    "act relu": {"activation": "relu"},
    "no head": {"head": "Model"},
    "classes of texts": {"head": "ForSequenceClassification", "num_labels": 5},
    "classes of tokens": {"head": "ForTokenClassification", "num_labels": 5},
}


def build(*, head: str = "ForMaskedLM", **changes: Any) -> Any:
    """A Hugging Face DistilBERT with random weights."""
    from transformers import DistilBertConfig

    return made(DistilBertConfig(**{**PLAIN, **changes}), kind_named(f"DistilBert{head}"))


EXAMPLE = Example(build, VARIANTS, causal=False, identity=normed_after)
