"""Tiny BERTs: with each head, and without."""

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
}
VARIANTS: dict[str, dict[str, Any]] = {
    "masked": {},
    "one head": {"num_attention_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    "act relu": {"hidden_act": "relu"},
    "pretraining": {"head": "ForPreTraining"},
    "next sentence": {"head": "ForNextSentencePrediction"},
    "no head": {"head": "Model"},
    "classes of texts": {"head": "ForSequenceClassification", "num_labels": 5},
    "classes of tokens": {"head": "ForTokenClassification", "num_labels": 5},
}


def build(*, head: str = "ForMaskedLM", **changes: Any) -> Any:
    """A Hugging Face BERT with random weights."""
    from transformers import BertConfig

    return made(BertConfig(**{**PLAIN, **changes}), kind_named(f"Bert{head}"))


EXAMPLE = Example(build, VARIANTS, causal=False, identity=normed_after)
