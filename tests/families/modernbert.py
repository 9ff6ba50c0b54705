"""Tiny ModernBERTs: windows on and off, both rotations, biases, each head."""

from typing import Any

from tests.families import Example, kind_named, made

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "local_attention": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 90.0},
    "sliding_attention": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "masked": {},
    "one head": {"num_attention_heads": 1},
    "local only": {"layer_types": ["sliding_attention"] * 3},
    "global only": {"layer_types": ["full_attention"] * 3},
    "local first": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "wide windows": {"local_attention": 9},
    "rotations": {"rope_parameters": ROPE},
    "biases": {
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
    },
    "no bias of words": {"decoder_bias": False},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"norm_eps": 0.1},
    "one layer": {"num_hidden_layers": 1},
    "act silu": {"hidden_activation": "silu", "classifier_activation": "relu"},
    "no head": {"head": "Model"},
    "classes of texts": {"head": "ForSequenceClassification", "num_labels": 5},
    "classes of tokens": {"head": "ForTokenClassification", "num_labels": 5},
}


def build(*, head: str = "ForMaskedLM", **changes: Any) -> Any:
    """A Hugging Face ModernBERT with random weights."""
    from transformers import ModernBertConfig

    return made(ModernBertConfig(**{**PLAIN, **changes}), kind_named(f"ModernBert{head}"))


EXAMPLE = Example(build, VARIANTS, causal=False)
