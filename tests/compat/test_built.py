"""What configurations with the rarer bricks show: their weights, constants, parts and refusals."""

from typing import Any

import pytest
import torch

from tests import tiny
from workbench.compat.transformer_lens import HookedTransformer, HookedTransformerConfig
from workbench.core.errors import OptionError, WeightsError

SIZES: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 16,
    "n_ctx": 8,
    "d_head": 4,
    "n_heads": 4,
    "d_vocab": 11,
    "d_mlp": 12,
    "act_fn": "gelu",
    "seed": 0,
    "device": "cpu",
}
IDS = torch.tensor([[1, 4, 2, 8, 5, 7]])
ALIBI = {"positional_embedding_type": "alibi"}
WINDOWS = {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 3}
AROUND = {"use_normalization_before_and_after": True, "normalization_type": "RMS"}
EXPERTS = {"num_experts": 3, "experts_per_token": 2, "normalization_type": "RMS"}


def built(**changes: Any) -> HookedTransformer:
    """A facade over a fresh model."""
    return HookedTransformer(HookedTransformerConfig(**{**SIZES, **changes}))


def said(facade: HookedTransformer, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Its logits."""
    with torch.no_grad():
        return torch.as_tensor(facade(ids))


def cached(facade: HookedTransformer, ids: torch.Tensor = IDS, names: Any = None) -> Any:
    """Its cache."""
    with torch.no_grad():
        return facade.run_with_cache(ids, names_filter=names)[1]


def test_each_layer_s_mask_is_that_of_its_window() -> None:
    facade = built(**WINDOWS)
    saved = facade.state_dict(buffers=True)
    whole = torch.ones(8, 8, dtype=torch.bool).tril()
    assert torch.equal(saved["blocks.0.attn.mask"], whole)
    assert torch.equal(saved["blocks.1.attn.mask"], whole.triu(-2))
    other = built(**{**WINDOWS, "seed": 1})
    other.load_state_dict(saved)
    assert torch.equal(said(other), said(facade))
    with pytest.raises(WeightsError, match=r"blocks.1.attn.mask is not the mask of a window of 3"):
        other.load_state_dict({**saved, "blocks.1.attn.mask": whole})
    with pytest.raises(WeightsError, match=r"blocks.1.attn.mask is not the causal mask"):
        built().load_state_dict(saved)


def test_alibi_adds_what_distances_cost_and_reads_no_position() -> None:
    facade = built(**ALIBI, n_heads=3, d_head=4)
    with torch.no_grad():
        facade.W_pos.add_(1)
    before = said(facade)
    scores = cached(facade, names="blocks.0.attn.hook_attn_scores")
    q, k = (cached(facade)[f"blocks.0.attn.hook_{name}"][0] for name in "qk")
    places = torch.arange(6)
    for head, slope in enumerate(2.0 ** (-8 * n / 3) for n in (1, 2, 3)):
        expected = q[:, head] @ k[:, head].T / 2 + slope * (places - places[:, None])
        found = scores["blocks.0.attn.hook_attn_scores"][0, head]
        tiny.close(found.tril(), expected.tril(), 1e-5)
    with torch.no_grad():
        facade.W_pos.mul_(2)
    assert torch.equal(said(facade), before)
    assert "hook_pos_embed" not in facade.hook_dict
    assert facade.cfg.positional_embedding_type == "alibi"


def test_a_cap_is_on_scores_before_alibi() -> None:
    facade = built(**ALIBI, attn_scores_soft_cap=0.5)
    cache = cached(facade)
    q, k = (cache[f"blocks.1.attn.hook_{name}"][0, :, 0] for name in "qk")
    places = torch.arange(6)
    expected = 0.5 * (q @ k.T).tanh() + 2.0**-2 * (places - places[:, None])  # x / 2 / 0.5
    tiny.close(cache["blocks.1.attn.hook_attn_scores"][0, 0].tril(), expected.tril(), 1e-5)


@pytest.mark.parametrize("ids", [IDS, IDS[:, :3]])
def test_an_embedding_may_be_called_with_its_norm(ids: torch.Tensor) -> None:
    facade = built(**ALIBI, post_embedding_ln=True)
    tiny.close(facade.embed(ids), cached(facade, ids)["hook_embed"], 1e-6)
    parts = dict(facade.named_modules())
    assert "embed.ln" in parts
    assert "embed.ln.hook_scale" in parts
    assert "embed.ln" not in dict(built().named_modules())


def test_parts_that_not_every_model_has_are_listed() -> None:
    rotary = {"positional_embedding_type": "rotary"}
    parts = dict(built(**AROUND, **rotary, use_qk_norm=True).named_modules())
    for name in ("ln1_post", "ln2_post", "attn.q_norm", "attn.k_norm"):
        assert f"blocks.1.{name}" in parts
        assert f"blocks.1.{name}.hook_normalized" in parts
    parts = dict(built(act_fn="solu_ln").named_modules())
    assert "blocks.0.mlp.ln.hook_scale" in parts
    assert "blocks.0.mlp.hook_mid" in parts


def test_every_listed_site_fires() -> None:
    for changes in (ALIBI, WINDOWS, AROUND, EXPERTS, {"act_fn": "solu_ln"}, {"use_qk_norm": True}):
        facade = built(**changes)
        names = list(facade.hook_dict)
        assert set(cached(facade, names=names)) == set(names), changes


def test_parts_of_what_a_norm_follows_are_refused() -> None:
    facade = built(**AROUND)
    cache = cached(facade)
    whole = cache.decompose_resid()
    tiny.close(whole.sum(0), cache["resid_post", -1], 1e-5)
    refused = pytest.raises(OptionError, match="a norm follows them")
    for read in (cache.stack_head_results, lambda: cache.stack_neuron_results(1)):
        with refused:
            read()
    with refused:
        cache.get_full_resid_decomposition()
    with refused:
        facade.accumulated_bias(1)


def test_processed_norms_around_stay_after_and_go_before() -> None:
    facade = built(**AROUND)
    before = said(facade).log_softmax(-1)
    facade.process_weights_(refactor_factored_attn_matrices=True)
    tiny.close(said(facade).log_softmax(-1), before, 1e-5)
    names = facade.state_dict()
    assert "blocks.0.ln1_post.w" in names
    assert "blocks.0.ln1.w" not in names
    assert facade.parity is not None
    assert any("a norm follows" in left for left in facade.parity.left_out)


def test_normed_queries_are_not_refactored() -> None:
    facade = built(use_qk_norm=True)
    before = said(facade).log_softmax(-1)
    facade.process_weights_(refactor_factored_attn_matrices=True)
    tiny.close(said(facade).log_softmax(-1), before, 1e-5)
    assert facade.parity is not None
    assert any("normalised or clipped" in left for left in facade.parity.left_out)


def test_experts_have_the_classic_s_names_and_load_back() -> None:
    facade, other = built(**EXPERTS), built(**{**EXPERTS, "seed": 1})
    saved = facade.state_dict()
    assert saved["blocks.0.mlp.W_gate.weight"].shape == (3, 16)
    assert saved["blocks.1.mlp.experts.2.W_in.weight"].shape == (12, 16)
    assert saved["blocks.1.mlp.experts.2.W_out.weight"].shape == (16, 12)
    assert "blocks.0.mlp.W_in" not in saved
    assert not torch.equal(said(other), said(facade))
    other.load_state_dict(saved)
    assert torch.equal(said(other), said(facade))
    with pytest.raises(OptionError, match="plain or gated"):
        _ = facade.blocks[0].mlp.W_in
