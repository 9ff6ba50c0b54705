"""Tiny models of transformers of which there is no family here, every parameter drawn."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from operator import attrgetter
from typing import Any

import workbench as wb
from tests import tiny
from tests.families import kind_named, made
from workbench.models.family import FAMILIES
from workbench.models.foreign import ForeignModel, load

WORDS = 258
PLAIN: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
STATEFUL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "state_size": 8,
    "num_hidden_layers": 2,
    "expand": 2,
    "bos_token_id": tiny.BOS,
    "eos_token_id": tiny.EOS,
}
MPT: dict[str, Any] = {
    "d_model": 24,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 32,
    "vocab_size": WORDS,
}
XGLM: dict[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 24,
    "ffn_dim": 40,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": 32,
}
MAMBA2: dict[str, Any] = {
    **STATEFUL,
    "num_heads": 6,
    "head_dim": 8,
    "n_groups": 2,
    "chunk_size": 4,
}


def _made(name: str, model: str, options: Mapping[str, Any]) -> Any:
    import transformers

    return made(attrgetter(f"{name}Config")(transformers)(**options), kind_named(model))


KINDS: Mapping[str, Callable[[], Any]] = {
    "mpt": partial(_made, "Mpt", "MptForCausalLM", MPT),
    "xglm": partial(_made, "XGLM", "XGLMForCausalLM", XGLM),
    "nemotron": partial(_made, "Nemotron", "NemotronForCausalLM", PLAIN),
    "glm": partial(_made, "Glm", "GlmForCausalLM", PLAIN),
    "starcoder2": partial(_made, "Starcoder2", "Starcoder2ForCausalLM", PLAIN),
    "hunyuan": partial(_made, "HunYuanDenseV1", "HunYuanDenseV1ForCausalLM", PLAIN),
    "mamba": partial(_made, "Mamba", "MambaForCausalLM", STATEFUL),
    "mamba2": partial(_made, "Mamba2", "Mamba2ForCausalLM", MAMBA2),
}


@cache
def theirs(kind: str) -> Any:
    """The model of transformers; nobody changes it."""
    return KINDS[kind]() if kind in KINDS else tiny.hf(kind)


@cache
def model(kind: str) -> ForeignModel:
    """The same through the bridge, over a vocabulary of bytes."""
    if theirs(kind).config.model_type in FAMILIES:
        return load(theirs(kind), tokenizer=tiny.Bytes())
    found = wb.load(theirs(kind), tokenizer=tiny.Bytes())
    assert isinstance(found, ForeignModel)
    return found
