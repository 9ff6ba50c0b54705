"""Weight views and the classic interface of the newer families: the same answers, or a refusal."""

import re

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.families import hf
from workbench.compat.transformer_lens import HookedTransformer
from workbench.core.errors import OptionError

FOLDED = ("mistral", "qwen2", "qwen3", "smollm3", "gemma", "olmo", "cohere", "cohere2")
POST = ("gemma2", "gemma3_text", "olmo2", "granite")
SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")
IDS = tiny.tokens(2, 9)


@pytest.mark.parametrize("name", [*FOLDED, *POST])
def test_a_folded_view_says_the_same(name: str) -> None:
    model = wb.load(hf(name), tokenizer=tiny.Bytes())
    view = model.folded().model
    one, other = (wb.run(m, IDS).logits.log_softmax(-1) for m in (model, view))
    tiny.close(one, other, 1e-4)
    left = [name for name, _ in view.stack.named_parameters() if "ln" in name]
    assert all("norm" in name or "_post" in name for name in left)


@pytest.mark.parametrize("name", SPARSE)
def test_a_view_of_experts_leaves_their_norms(name: str) -> None:
    model = wb.load(hf(name), tokenizer=tiny.Bytes())
    made = model.folded()
    assert any(left.startswith("fold_ln (a router") for left in made.parity.left_out)
    assert "center_unembed" in made.parity.applied
    one, other = (wb.run(m, IDS).logits.log_softmax(-1) for m in (model, made.model))
    tiny.close(one, other, 1e-4)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "olmo", "mixtral"])
def test_the_classic_interface_says_the_same(name: str) -> None:
    model = wb.load(hf(name), tokenizer=tiny.Bytes())
    classic = HookedTransformer.from_pretrained_no_processing(model)
    with torch.no_grad():
        said = classic(IDS)
    assert isinstance(said, torch.Tensor)
    tiny.close(said, wb.run(model, IDS).logits, 1e-5)
    cfg = classic.cfg
    assert cfg.use_qk_norm == (name == "qwen3")
    assert ("blocks.0.attn.q_norm.w" in classic.state_dict()) == (name == "qwen3")
    assert cfg.use_local_attn == (name == "mistral")  # by default, of 4096


def test_the_classic_configuration_tells_of_windows() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    changes = {"use_sliding_window": True, "sliding_window": 3, "layer_types": kinds}
    model = wb.load(hf("qwen2", **changes), tokenizer=tiny.Bytes())
    cfg = HookedTransformer.from_pretrained_no_processing(model).cfg
    assert (cfg.use_local_attn, cfg.window_size) == (True, 3)
    assert cfg.attn_types == ["local", "global", "local"]


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gemma", {}, "embeddings times a number"),
        ("cohere", {}, "logits times a number"),
        ("gemma2", {}, "embeddings times a number"),
        ("gemma3_text", {}, "embeddings times a number"),
        ("granite", {}, "writings times a number"),
        ("olmo2", {}, "norms over all heads"),
        ("qwen2_moe", {}, "experts other than Mixtral's"),
        ("gpt_oss", {}, "attention sinks"),
        ("smollm3", {}, "layers that turn and layers that do not"),
        ("olmo", {"clip_qkv": 0.5}, "clipped queries"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 9.0, "factor": 2.0}},
            "frequencies stretched by a text's length",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_the_classic_has_no_words_for_is_refused(
    name: str, changes: dict[str, object], reason: str
) -> None:
    model = wb.load(hf(name, **changes), tokenizer=tiny.Bytes())
    with pytest.raises(OptionError, match=re.escape(reason)):
        HookedTransformer.from_pretrained_no_processing(model)
