"""Tiny BARTs: unequal stacks, scaled embeddings, a bias on logits."""

from typing import Any

from tests import tiny
from tests.families import Example, made

BART: dict[str, Any] = {
    "vocab_size": 258,
    "d_model": 24,
    "max_position_embeddings": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 256,
    "decoder_start_token_id": 257,
    "forced_eos_token_id": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a bias on logits": {"biased": True},
    "scaled embeddings": {"scale_embedding": True},
    "one head, relu": {
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
        "activation_function": "relu",
    },
    "a short decoder": {"encoder_layers": 3, "decoder_layers": 2},
}


def build(*, biased: bool = False, **changes: Any) -> Any:
    """A Hugging Face BART with random weights; of pads it has an embedding, too."""
    from transformers import BartConfig, BartForConditionalGeneration

    model = made(BartConfig(**{**BART, **changes}), BartForConditionalGeneration)
    if biased:
        model.final_logits_bias.copy_(tiny.normal(*model.final_logits_bias.shape, seed=5))
    return model


EXAMPLE = Example(build, VARIANTS)
