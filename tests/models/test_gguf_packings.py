"""Each way of packing weights in GGUF, against the gguf package's own unpacking."""

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Packing

import workbench as wb
from tests import tiny
from workbench.models.checkpoint import read_folder
from workbench.models.family import FAMILIES
from workbench.models.gguf import convert_gguf
from workbench.models.pieces import BYTE_OF

WIDTH, HEADS, KEY_HEADS, INNER = 256, 4, 2, 512  # K-quants pack 256 numbers at once
PACKED = (  # the gguf package packs these itself
    Packing.Q4_0,
    Packing.Q4_1,
    Packing.Q5_0,
    Packing.Q5_1,
    Packing.Q8_0,
    Packing.F16,
    Packing.BF16,
    Packing.F32,
)
K_QUANTS = (Packing.Q2_K, Packing.Q3_K, Packing.Q4_K, Packing.Q5_K, Packing.Q6_K)
KINDS = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
CASES = [
    *(("llama", packing) for packing in (*PACKED, *K_QUANTS)),
    *((name, packing) for name in ("qwen2", "gpt2") for packing in (Packing.Q8_0, Packing.Q4_K)),
]
VOCABULARY = ["<|end|>", *BYTE_OF, "he"]


def packed(weight: np.ndarray, packing: Packing) -> np.ndarray:
    """A weight's blocks; for K-quants, which only llama.cpp packs, blocks of small numbers."""
    if packing not in K_QUANTS:
        return gguf.quants.quantize(weight, packing)
    block, n_bytes = gguf.GGML_QUANT_SIZES[packing]
    shape = (*weight.shape[:-1], weight.shape[-1] // block * n_bytes)
    seed = int(hashlib.sha256(weight.tobytes()).hexdigest()[:8], 16)
    random = np.random.default_rng(seed).integers(0, 0x30, shape)  # 16-bit scales stay below 1/8
    return random.astype(np.uint8)


def write(
    file: Path, theirs: Any, architecture: str, packing: Packing, sizes: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """A Hugging Face model as a GGUF file, its matrices packed; what they unpack to, by name."""
    n_layers = theirs.config.num_hidden_layers
    names = gguf.get_tensor_name_map(KINDS[architecture], n_layers)
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in sizes.items():
        add: Any = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] + [1] * (len(VOCABULARY) - 1))
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(0)
    expected: dict[str, torch.Tensor] = {}
    for name, parameter in theirs.named_parameters():
        weight = parameter.detach().numpy()
        turned = architecture == "gpt2" and ".h." in name and weight.ndim == 2
        stored = weight.T if turned else weight
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        heads = heads_of(architecture, name)
        if heads and weight.ndim == 2:
            stored = permuted(stored, heads)
        kind = packing if weight.ndim == 2 else Packing.F32
        blocks = packed(np.ascontiguousarray(stored), kind)
        writer.add_tensor(target, blocks, raw_dtype=kind)
        found = gguf.quants.dequantize(blocks, kind).reshape(stored.shape)
        found = permuted(found, heads, back=True) if heads and weight.ndim == 2 else found
        expected[name] = torch.from_numpy(np.ascontiguousarray(found.T if turned else found))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def heads_of(architecture: str, name: str) -> int:
    """Of a matrix whose rows llama.cpp reorders, the heads; else 0."""
    if architecture != "llama":
        return 0
    return {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(name.split(".")[-2], 0)


def permuted(weight: np.ndarray, heads: int, *, back: bool = False) -> np.ndarray:
    """How llama.cpp reorders rows of q and k: halves of a head become pairs; or back."""
    half = weight.shape[0] // heads // 2
    split = (heads, half, 2) if back else (heads, 2, half)
    return weight.reshape(*split, -1).swapaxes(1, 2).reshape(weight.shape)


COMMON = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": WIDTH,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
}
ROTARY = {
    **COMMON,
    "attention.head_count_kv": KEY_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10_000.0,
    "rope.dimension_count": WIDTH // HEADS,
    "vocab_size": len(VOCABULARY),
}
SIZES: dict[str, dict[str, Any]] = {
    "llama": ROTARY,
    "qwen2": ROTARY,
    "gpt2": {**COMMON, "attention.layer_norm_epsilon": 1e-5},
}


def model(architecture: str) -> Any:
    """A tiny Hugging Face model of an architecture."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    if architecture == "gpt2":
        sizes: dict[str, Any] = {"n_embd": WIDTH, "n_inner": INNER, "n_layer": 1, "n_head": HEADS}
        config = GPT2Config(vocab_size=len(VOCABULARY), n_positions=64, **sizes)
        return tiny.randomised(GPT2LMHeadModel(config))
    kinds: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }
    of_config, of_model = kinds[architecture]
    config = of_config(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    return tiny.randomised(of_model(config))


@pytest.mark.parametrize(
    ("architecture", "packing"), CASES, ids=[f"{name} {packing.name}" for name, packing in CASES]
)
def test_a_packed_file_holds_what_the_gguf_package_unpacks(
    architecture: str, packing: Packing, tmp_path: Path
) -> None:
    theirs = model(architecture)
    file = tmp_path / "model.gguf"
    expected = write(file, theirs, architecture, packing, SIZES[architecture])
    folder = convert_gguf(file, tmp_path / "converted")
    found = read_folder(folder).weights
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    if architecture not in FAMILIES or packing in K_QUANTS:
        return  # what was drawn for K-quants is no model's: its logits are in the thousands
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(expected[name])
        ids = tiny.tokens(1, 9)
        logits = theirs(ids).logits
    got = wb.run(wb.load(folder), ids).logits
    tiny.close(got, logits, 1e-5 * max(1.0, float(logits.abs().max())))
