"""Converting GGUF files, on a tiny Llama that is written here."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.core.errors import FormatError, WeightsError
from workbench.models import gguf as converter
from workbench.models.checkpoint import read_folder, resolve
from workbench.models.gguf import cached_gguf, convert_gguf, correct_split, untied
from workbench.models.gguf_header import read_header
from workbench.models.pieces import BYTE_OF
from workbench.models.tokenizer import Tokenizer

D, HEADS, KEY_HEADS, MLP = 32, 4, 2, 64
SUFFIX = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor of a Llama in GGUF."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{SUFFIX[parts[2]]}.weight"
    return {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]] + ".weight"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """How llama.cpp reorders rows of q and k: halves of a head become pairs."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def tiny_weights() -> dict[str, np.ndarray]:
    """Random weights of a one-layer Llama, by their GGUF names, not yet permuted."""
    shapes = {
        "token_embd": (260, D),
        "output_norm": (D,),
        "blk.0.attn_norm": (D,),
        "blk.0.ffn_norm": (D,),
        "blk.0.attn_q": (D, D),
        "blk.0.attn_k": (D // HEADS * KEY_HEADS, D),
        "blk.0.attn_v": (D // HEADS * KEY_HEADS, D),
        "blk.0.attn_output": (D, D),
        "blk.0.ffn_gate": (MLP, D),
        "blk.0.ffn_up": (MLP, D),
        "blk.0.ffn_down": (D, MLP),
    }
    random = np.random.default_rng(0)
    return {
        f"{name}.weight": random.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_gguf(file: Path, way: str = "smollm") -> Path:
    """A tiny Llama with a byte-level vocabulary of two merges and two special tokens."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(D // HEADS)
    letters = list(BYTE_OF)
    tokens = ["<|im_start|>", "<|im_end|>", *letters, "he", "ĊĊ"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(way)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["h e", "Ċ Ċ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(0)
    writer.add_add_bos_token(False)
    for name, weight in tiny_weights().items():
        heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KEY_HEADS}.get(name[:12])
        writer.add_tensor(name, weight if heads is None else permute(weight, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this file's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("WORKBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def converted(tiny: Path, cache: Path) -> Path:
    """What the tiny file converts into, through the cache."""
    return cached_gguf(tiny)


# --- converting -------------------------------------------------------------------------------


def test_converted_weights_are_the_written_ones_with_q_and_k_in_order(converted: Path) -> None:
    weights = read_folder(converted).weights
    expected = {hf_name(name): weight for name, weight in tiny_weights().items()}
    assert set(weights) == set(expected)  # the tied head is not stored again
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], torch.from_numpy(weight), rtol=0, atol=0)


def test_the_converted_config_says_what_the_model_is(converted: Path) -> None:
    config = read_folder(converted).config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["num_key_value_heads"] == KEY_HEADS
    assert not {"quantization_config", "_name_or_path", "unk_token_id"} & config.keys()


def test_every_token_that_ends_a_text_is_kept(converted: Path) -> None:
    assert read_folder(converted).eos_ids == (1, 0)
    assert Tokenizer.from_folder(converted).eos_ids == (1, 0)


def test_digits_are_split_off_first_where_the_file_says_so(converted: Path) -> None:
    tokenizer = Tokenizer.from_folder(converted)
    pieces = [tokenizer.token_text(token) for token in tokenizer.encode("he\n\n12")]
    assert pieces == ["he", "\n\n", "1", "2"]  # GPT-2's way gives "\n", "\n"
    assert tokenizer.decode(tokenizer.encode("he\n\n12")) == "he\n\n12"


def test_special_tokens_are_special_and_no_bos_is_added(converted: Path) -> None:
    tokenizer = Tokenizer.from_folder(converted)
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.encode("<|im_start|>") == (0,)
    assert len(tokenizer.encode("x")) == 1


def test_a_file_is_converted_once_and_known_by_its_content(
    tiny: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "convert_gguf", None)  # would fail if called
    copy = tiny.with_name("another name.gguf")
    copy.write_bytes(tiny.read_bytes())
    assert resolve(str(copy)) == converted


def test_a_way_of_splitting_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"splits text in the way 'martian'"):
        convert_gguf(write_gguf(tmp_path / "x.gguf", "martian"), tmp_path / "out")


@pytest.mark.parametrize("way", [None, "gpt-2", "default"])
def test_gpt2_splitting_is_left_alone(way: str | None) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    before = backend.to_str()
    correct_split(backend, way)
    assert backend.to_str() == before


def test_an_architecture_nobody_knows_says_what_to_load_instead(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "martian")
    writer.add_tensor("a", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r"'martian'.*hub id instead"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")


def test_a_tensor_with_two_names_is_stored_once() -> None:
    shared = torch.ones(2, 3)
    assert list(untied({"a": shared, "b": shared, "c": torch.ones(2, 3)})) == ["a", "c"]


# --- the header -------------------------------------------------------------------------------


def test_the_header_tells_metadata_and_tensors(tiny: Path) -> None:
    header = read_header(tiny)
    assert header.text("tokenizer.ggml.pre") == "smollm"
    assert header.number("llama.block_count") == 1
    assert header.number("general.name") is None
    assert {tensor.name for tensor in header.tensors} == set(tiny_weights())


@given(share=st.floats(0, 0.999))
def test_a_gguf_file_cut_off_anywhere_is_a_typed_error(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    whole = tiny.read_bytes()
    file = tmp_path_factory.mktemp("cut") / "x.gguf"
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


@given(place=st.integers(4, 600), byte=st.integers(0, 255))
def test_a_gguf_header_with_a_changed_byte_is_read_or_a_typed_error(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    content = bytearray(tiny.read_bytes())
    content[place] = byte
    file = tmp_path_factory.mktemp("changed") / "x.gguf"
    file.write_bytes(content)
    with contextlib.suppress(WeightsError):
        read_header(file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "begins with 24"),
        (b"<html>" + bytes(30), "expected a GGUF file"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "version 1"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "no tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0), "does not fit"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63), "does not fit"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**63), "does not fit"),
        (struct.pack("<4sIQQQcI", b"GGUF", 3, 0, 1, 1, b"a", 99), "unknown type 99"),
        (struct.pack("<4sIQQQcIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 4, 2**62), "does not fit"),
        (struct.pack("<4sIQQQcIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 9, 1), "unknown type 9"),
        (struct.pack("<4sIQQQcI", b"GGUF", 3, 1, 0, 1, b"a", 2**31), "axes"),
    ],
)
def test_a_file_that_is_no_gguf_file_says_so(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=problem):
        read_header(file)
