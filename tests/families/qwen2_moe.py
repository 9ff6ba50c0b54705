"""Tiny Qwen2-MoEs: dense layers among the sparse, weights made to sum to 1 or not."""

from typing import Any

from tests import tiny
from tests.families import Example, made

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}
PLAIN: dict[str, Any] = {
    **{key: value for key, value in tiny.LLAMA.items() if key != "head_dim"},
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "every layer sparse": {},
    "normalised": {"norm_topk_prob": True},
    "every other layer sparse": {"decoder_sparse_step": 2},
    "a dense layer by number": {"mlp_only_layers": [1]},
    "no biases": {"qkv_bias": False},
    "windows": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "tied": {"tie_word_embeddings": True},
    "gelu": {"hidden_act": "gelu"},
    "one expert": {"num_experts_per_tok": 1},
    "all experts": {"num_experts_per_tok": 5},
    "odd heads": {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "rope linear": {"rope_parameters": LINEAR},
}


def build(**changes: Any) -> Any:
    """A Hugging Face model with random weights."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    return made(Qwen2MoeConfig(**{**PLAIN, **changes}), Qwen2MoeForCausalLM)


EXAMPLE = Example(build, VARIANTS)
