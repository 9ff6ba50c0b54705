"""Tiny DeBERTas: each kind of distance, buckets, shared maps, each head."""

from typing import Any

from tests.families import Example, kind_named, made, normed_after

PLAIN: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
V3 = {"position_buckets": 4, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
VARIANTS: dict[str, dict[str, Any]] = {
    "masked": V3,
    "distances as they are": {},
    "short distances": {"max_relative_positions": 5},
    "content to position": {"pos_att_type": ["c2p"]},
    "position to content": {"pos_att_type": "p2c"},
    "no distances": {"relative_attention": False, "position_biased_input": True},
    "positions and types": {"position_biased_input": True, "type_vocab_size": 2},
    "one head": {**V3, "num_attention_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "another eps": {"layer_norm_eps": 0.1},
    "one layer": {**V3, "num_hidden_layers": 1},
    "head of v3": {**V3, "legacy": False},
    "no head": {**V3, "head": "Model"},
    "classes of texts": {**V3, "head": "ForSequenceClassification", "num_labels": 5},
    "classes of tokens": {**V3, "head": "ForTokenClassification", "num_labels": 5},
}


def build(*, head: str = "ForMaskedLM", **changes: Any) -> Any:
    """A Hugging Face DeBERTa with random weights."""
    from transformers import DebertaV2Config

    return made(DebertaV2Config(**{**PLAIN, **changes}), kind_named(f"DebertaV2{head}"))


EXAMPLE = Example(build, VARIANTS, causal=False, identity=normed_after)
