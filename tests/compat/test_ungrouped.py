"""Keys and values of grouped heads told apart: the same words, and a head of its own for each."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.compat.classic import IDS, fresh, logits, raw
from workbench.compat.transformer_lens import HookedTransformer, HookedTransformerKeyValueCache
from workbench.core.errors import OptionError


def apart() -> HookedTransformer:
    """A Llama of four heads in two groups, ungrouped."""
    facade = fresh("llama")
    facade.set_ungroup_grouped_query_attention(True)
    return facade


def everything(facade: HookedTransformer) -> Any:
    """Every activation, those of the split inputs too."""
    return facade.run_with_cache(IDS, names_filter="*")[1]


def test_it_says_the_same_and_keys_are_those_of_the_group() -> None:
    facade, found, grouped = apart(), everything(apart()), everything(raw("llama"))
    tiny.close(logits(facade), logits(raw("llama")), 1e-5)
    assert set(found) == set(grouped)
    for name in ("k", "v", "rot_k"):
        tiny.close(found[name, 1], grouped[name, 1].repeat_interleave(2, 2), 1e-6)
    assert found["blocks.1.hook_k_input"].shape[2] == facade.cfg.n_heads == 4
    tiny.close(found["pattern", 2], grouped["pattern", 2], 1e-6)


@pytest.mark.parametrize("name", ["attn.hook_k", "attn.hook_v", "hook_k_input", "hook_v_input"])
def test_a_change_of_one_head_s_keys_is_seen_by_that_head_alone(name: str) -> None:
    facade = apart().to(torch.float64)

    def wipe(value: Tensor, hook: Any) -> None:
        value[:, :, 1] = 0

    pair, z = (f"blocks.1.{name}", wipe), "blocks.1.attn.hook_z"
    cut = facade.run_with_cache(IDS, fwd_hooks=[pair], names_filter=z)[1][z]
    base = facade.run_with_cache(IDS, names_filter=z)[1][z]
    moved = (cut - base).abs().amax((0, 1, 3)) > 1e-9
    assert moved.tolist() == [False, True, False, False]


def test_weights_and_state_dicts_stay_grouped_and_processing_goes_on() -> None:
    facade, grouped = apart(), raw("llama")
    assert torch.equal(facade.W_K, grouped.W_K)
    bare = HookedTransformer.from_pretrained(tiny.model("llama"))
    bare.set_ungroup_grouped_query_attention(True)
    tiny.close(logits(bare).log_softmax(-1), logits(grouped).log_softmax(-1), 1e-5)
    facade.to(torch.float64)
    assert logits(facade).dtype is torch.float64
    facade.set_ungroup_grouped_query_attention(False)
    assert facade.run_with_cache(IDS)[1]["k", 0].shape[2] == 2
    digest = tiny.digest(tiny.model("llama"))
    assert tiny.digest(raw("llama").engine) == digest


def test_a_key_value_cache_and_generation_go_on() -> None:
    facade = apart()
    cache = HookedTransformerKeyValueCache.init_cache(facade.cfg, "cpu", 2)
    first = logits(facade, IDS[:, :4], past_kv_cache=cache)
    rest = logits(facade, IDS[:, 4:], past_kv_cache=cache)
    tiny.close(torch.cat([first, rest], 1), logits(facade), 1e-5)
    options: dict[str, Any] = {"do_sample": False, "stop_at_eos": False}
    assert torch.equal(facade.generate(IDS, 4, **options), raw("llama").generate(IDS, 4, **options))


def test_weights_that_are_trained_stay_grouped() -> None:
    config = {"n_layers": 1, "d_model": 8, "n_ctx": 4, "d_head": 4, "n_heads": 2, "d_vocab": 5}
    facade = HookedTransformer({**config, "act_fn": "relu", "n_key_value_heads": 1})
    with pytest.raises(OptionError, match="a view would not follow them"):
        facade.set_ungroup_grouped_query_attention(True)
    facade = HookedTransformer({**config, "act_fn": "relu"})
    facade.set_ungroup_grouped_query_attention(True)  # there are no groups
    assert facade.cfg.ungroup_grouped_query_attention
