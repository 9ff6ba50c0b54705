"""ActivationCache: TransformerLens 2.18's numbers, its identities, and where it was wrong."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.compat.standin import BOTH, LN, RMS, Config, Golden, Standin, close, golden, said
from workbench.compat.transformer_lens.activation_cache import ActivationCache
from workbench.core.errors import OptionError, ShapeError, UnknownNameError

EACH = pytest.mark.parametrize("gold", BOTH, ids=["ln", "rms"])
RIGHT, WRONG = torch.tensor([3, 5]), torch.tensor([7, 1])
EVERY = (torch.arange(12) % 40).reshape(2, 6)

STACKS: dict[str, Callable[[ActivationCache], Tensor]] = {
    "accumulated": lambda c: c.accumulated_resid(incl_mid=True),
    "accumulated_ln": lambda c: c.accumulated_resid(apply_ln=True),
    "accumulated_1_ln": lambda c: c.accumulated_resid(1, apply_ln=True, mlp_input=True),
    "accumulated_pos": lambda c: c.accumulated_resid(1, pos_slice=2),
    "decompose_ln": lambda c: c.decompose_resid(apply_ln=True, pos_slice=(1, 4)),
    "decompose_mlp": lambda c: c.decompose_resid(mode="mlp", incl_embeds=False),
    "decompose_attn_1": lambda c: c.decompose_resid(1, mlp_input=True, mode="attn"),
    "heads": lambda c: c.stack_head_results(incl_remainder=True),
    "heads_1_ln": lambda c: c.stack_head_results(1, pos_slice=-1, apply_ln=True),
    "neurons": lambda c: c.stack_neuron_results(-1, pos_slice=-1, incl_remainder=True),
    "neurons_some": lambda c: c.stack_neuron_results(2, neuron_slice=[1, 5], apply_ln=True),
    "neurons_one": lambda c: c.get_neuron_results(1, neuron_slice=3, pos_slice=(2, None)),
    "activations": lambda c: c.stack_activation("pattern"),
    "full": lambda c: c.get_full_resid_decomposition(pos_slice=-1, apply_ln=True),
    "full_1": lambda c: c.get_full_resid_decomposition(1, mlp_input=True, expand_neurons=False),
    "attrs_one": lambda c: c.logit_attrs(c.decompose_resid(), 3),
    "attrs_rows": lambda c: c.logit_attrs(c.decompose_resid(pos_slice=-1), RIGHT, WRONG, -1),
    "attrs_each": lambda c: c.logit_attrs(c.decompose_resid(), EVERY),
    "attrs_row": lambda c: c.logit_attrs(c.decompose_resid(pos_slice=-1), 3, 7, -1, 1),
}


@EACH
@pytest.mark.parametrize("name", STACKS)
def test_stacks_are_those_of_the_classic(gold: Golden, name: str) -> None:
    close(STACKS[name](gold.cache()), gold.expected("cache")[name])


@EACH
def test_every_golden_stack_is_compared(gold: Golden) -> None:
    assert set(gold.expected("cache")) == set(STACKS)


@EACH
def test_labels_are_those_of_the_classic(gold: Golden) -> None:
    cache = gold.cache()
    ours = {
        "accumulated": cache.accumulated_resid(incl_mid=True, return_labels=True)[1],
        "decompose": cache.decompose_resid(1, mlp_input=True, return_labels=True)[1],
        "heads": cache.stack_head_results(1, return_labels=True, incl_remainder=True)[1],
        "neurons": cache.stack_neuron_results(2, neuron_slice=(3, 5), return_labels=True)[1],
        "full": cache.get_full_resid_decomposition(1, expand_neurons=False, return_labels=True)[1],
    }
    assert ours == said()[f"labels_{gold.name}"]


@EACH
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_decompositions_sum_to_the_stream(gold: Golden, layer: int) -> None:
    cache = gold.cache()
    stream = cache["resid_pre", layer] if layer < 2 else cache["resid_post", -1]
    for stack in (
        cache.decompose_resid(layer),
        cache.get_full_resid_decomposition(layer),
        cache.get_full_resid_decomposition(layer, expand_neurons=False),
        cache.stack_head_results(layer, incl_remainder=True),
        cache.stack_neuron_results(layer, neuron_slice=2, incl_remainder=True),
    ):
        close(stack.sum(0), stream)


@EACH
@pytest.mark.parametrize("layer", [0, 1])
def test_decompositions_before_the_neurons_sum_to_the_middle(gold: Golden, layer: int) -> None:
    cache = gold.cache()
    for stack in (
        cache.decompose_resid(layer, mlp_input=True),
        cache.get_full_resid_decomposition(layer, mlp_input=True),
        cache.get_full_resid_decomposition(layer, mlp_input=True, expand_neurons=False),
    ):
        close(stack.sum(0), cache["resid_mid", layer])


@EACH
def test_shares_of_the_logit_sum_to_it_on_folded_weights(gold: Golden) -> None:
    weights = gold.weights
    folded = {**weights, "unembed.W_U": weights["ln_final.w"][:, None] * weights["unembed.W_U"]}
    model = Standin(folded, gold.model.cfg)
    cache = ActivationCache(gold.cache().cache_dict, model)
    shares = cache.logit_attrs(cache.get_full_resid_decomposition(), EVERY).sum(0)
    bias = weights.get("ln_final.b", torch.zeros(32)) @ weights["unembed.W_U"]
    logits = golden(f"analysis_{gold.name}", "logits")["clean"]
    close(shares + bias[EVERY], logits.gather(2, EVERY[..., None])[..., 0], 1e-4)


def test_tokens_of_rows_hold_for_all_their_positions() -> None:  # trap 22
    cache = LN.cache()
    stack = cache.decompose_resid()
    shares = cache.logit_attrs(stack, RIGHT)
    for row in range(2):
        close(shares[:, row], cache.logit_attrs(stack, int(RIGHT[row]))[:, row])


def test_tokens_of_rows_are_not_of_positions_where_both_are_as_many() -> None:  # trap 22, b = p
    square = {name: value for name, value in LN.cache().items() if value.ndim == 3}
    cache = ActivationCache({name: value[:, :2] for name, value in square.items()}, LN.model)
    stack = cache.decompose_resid()
    shares = cache.logit_attrs(stack, RIGHT)
    close(shares[:, 1, 0], cache.logit_attrs(stack, int(RIGHT[1]))[:, 1, 0])
    close(shares, cache.logit_attrs(stack, RIGHT[:, None].expand(2, 2)))


def test_tokens_are_sliced_with_the_stack_or_come_sliced() -> None:
    cache = LN.cache()
    whole = cache.logit_attrs(cache.decompose_resid(), EVERY)
    some = cache.decompose_resid(pos_slice=(1, 4))
    close(cache.logit_attrs(some, EVERY, pos_slice=(1, 4)), whole[:, :, 1:4])
    close(cache.logit_attrs(some, EVERY[:, 1:4], pos_slice=(1, 4)), whole[:, :, 1:4])
    close(cache.logit_attrs(cache.decompose_resid(), EVERY, batch_slice=1), whole[:, 1])
    close(cache.logit_attrs(cache.decompose_resid(), EVERY, batch_slice=[1]), whole[:, 1:])
    last = cache.decompose_resid(pos_slice=-1)
    close(cache.logit_attrs(last, EVERY, pos_slice=-1), whole[:, :, -1])
    close(cache.logit_attrs(last, EVERY, pos_slice=-1, batch_slice=1), whole[:, 1, -1])


def test_tokens_without_a_batch_are_of_positions() -> None:
    cache = LN.cache().apply_slice_to_batch_dim(1)
    whole = LN.cache().logit_attrs(LN.cache().decompose_resid(), EVERY)
    close(cache.logit_attrs(cache.decompose_resid(), EVERY[1], has_batch_dim=False), whole[:, 1])
    close(cache.logit_attrs(cache.decompose_resid(), EVERY[1]), whole[:, 1])


def test_a_text_is_its_one_token() -> None:
    cache = LN.cache()
    stack = cache.decompose_resid()
    close(cache.logit_attrs(stack, "a"), cache.logit_attrs(stack, ord("a") % 40))


def test_tokens_that_do_not_fit_are_refused() -> None:
    cache = LN.cache()
    stack = cache.decompose_resid()
    with pytest.raises(ShapeError, match="of the shape of tokens"):
        cache.logit_attrs(stack, RIGHT, 3)
    with pytest.raises(ShapeError, match="fit a stack of"):
        cache.logit_attrs(stack, torch.tensor([1, 2, 3]))
    with pytest.raises(ShapeError, match="at most 2 axes"):
        cache.logit_attrs(stack, torch.ones(2, 6, 1, dtype=torch.long))


@EACH
def test_a_frozen_norm_is_additive_and_a_recomputed_one_has_own_statistics(gold: Golden) -> None:
    cache = gold.cache()
    stack = cache.decompose_resid()
    frozen = cache.apply_ln_to_stack(stack)
    close(frozen.sum(0), cache.apply_ln_to_stack(stack.sum(0)[None])[0])
    final = cache.accumulated_resid(apply_ln=True)[-1]
    if gold is LN:  # of an RMSNorm, normalized is before the weight
        close(final, cache["normalized"])
    else:
        close(final, cache["normalized"] * gold.weights["ln_final.w"])


def test_the_final_norm_centres_only_where_it_is_no_rmsnorm() -> None:
    cache = ActivationCache(LN.cache().cache_dict, Standin(LN.weights, Config(final_rms=True)))
    stack = cache.decompose_resid()
    close(cache.apply_ln_to_stack(stack), stack / cache["scale"])
    centred = stack - stack.mean(-1, keepdim=True)
    close(cache.apply_ln_to_stack(stack, 1), centred / cache["scale", 1, "ln1"])


def test_without_norms_a_stack_stays_as_it_is() -> None:
    model = Standin(LN.weights, Config(normalization_type=None))
    cache = ActivationCache(LN.cache().cache_dict, model)
    stack = cache.decompose_resid()
    assert cache.apply_ln_to_stack(stack) is not None
    close(cache.apply_ln_to_stack(stack, batch_slice=1), stack[:, 1])


def test_attention_only_models_decompose() -> None:  # trap 25
    weights = {name: value for name, value in LN.weights.items() if ".mlp." not in name}
    model = Standin(weights, Config(attn_only=True, d_mlp=None))
    written = tiny.normal(2, 2, 6, 4, 8)
    start = tiny.normal(2, 6, 32, seed=1)
    found = {"hook_embed": start, "blocks.0.hook_resid_pre": start}
    for layer in range(2):
        bias = weights[f"blocks.{layer}.attn.b_O"]
        found[f"blocks.{layer}.attn.hook_z"] = written[layer]
        out = torch.einsum("bphe,hed->bpd", written[layer], weights[f"blocks.{layer}.attn.W_O"])
        found[f"blocks.{layer}.hook_attn_out"] = out + bias
        start = start + out + bias
        found[f"blocks.{layer}.hook_resid_post"] = start
    cache = ActivationCache(found, model)
    stack, labels = cache.get_full_resid_decomposition(return_labels=True)
    assert labels == [*(f"L{n}H{h}" for n in (0, 1) for h in range(4)), "embed", "bias"]
    close(stack.sum(0), start)
    close(cache.decompose_resid().sum(0), start)


def test_positions_that_never_enter_the_stream_are_no_component() -> None:
    model = Standin(LN.weights, Config(positional_embedding_type="shortformer"))
    cache = ActivationCache(LN.cache().cache_dict, model)
    assert "pos_embed" not in cache.decompose_resid(return_labels=True)[1]
    assert "pos_embed" not in cache.get_full_resid_decomposition(return_labels=True)[1]


def test_an_analysis_neither_grows_the_cache_nor_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:  # trap 23
    cache = LN.cache()
    before = {name: value.clone() for name, value in cache.items()}
    cache.compute_head_results()
    cache.stack_head_results()
    cache.get_full_resid_decomposition(apply_ln=True)
    close(cache["result", 1], cache["blocks.1.attn.hook_result"])
    close(cache["result", 1].sum(2) + LN.weights["blocks.1.attn.b_O"], cache["attn_out", 1])
    assert list(cache) == list(before)
    assert all(tiny.same_bytes(cache[name], before[name]) for name in before)
    assert capsys.readouterr() == ("", "")


def test_recorded_head_results_are_taken_before_those_of_z() -> None:
    edited = torch.zeros(2, 6, 4, 32)
    found = {**LN.cache().cache_dict, "blocks.0.attn.hook_result": edited}
    cache = ActivationCache(found, LN.model)
    assert not cache.stack_head_results(1).any()


def test_removing_the_batch_axis_of_two_rows_is_refused() -> None:  # trap 13
    cache = LN.cache()
    with pytest.raises(ShapeError, match="one row, got 2"):
        cache.remove_batch_dim()
    assert cache.has_batch_dim
    assert cache["resid_pre", 0].shape == (2, 6, 32)


@EACH
def test_one_row_without_its_batch_axis_gives_the_same_numbers(gold: Golden) -> None:
    whole, row = gold.cache(), gold.cache().apply_slice_to_batch_dim([1])
    assert row.has_batch_dim
    assert row.remove_batch_dim() is row
    assert not row.remove_batch_dim().has_batch_dim
    for make in (
        lambda c: c.accumulated_resid(apply_ln=True),
        lambda c: c.decompose_resid(1, apply_ln=True, pos_slice=2),
        lambda c: c.get_full_resid_decomposition(apply_ln=True),
        lambda c: c.stack_neuron_results(1, pos_slice=[0, 3]),
        lambda c: c.logit_attrs(c.stack_head_results(), 4, 5),
    ):
        close(make(row), make(whole)[:, 1])


def test_a_batch_slice_is_another_cache() -> None:
    cache = LN.cache()
    assert cache.apply_slice_to_batch_dim((0, 1))["k", 1].shape == (1, 6, 4, 8)
    assert not cache.apply_slice_to_batch_dim(0).has_batch_dim
    assert cache["k", 1].shape == (2, 6, 4, 8)
    with pytest.raises(ShapeError, match="a cache with a batch axis"):
        cache.apply_slice_to_batch_dim(0).apply_slice_to_batch_dim(0)


def test_keys_are_full_names_shorthand_and_tuples() -> None:
    cache = LN.cache()
    for key, name in (
        (("k", 1), "blocks.1.attn.hook_k"),
        ("k1", "blocks.1.attn.hook_k"),
        (("normalized", -1, "ln2"), "blocks.1.ln2.hook_normalized"),
        (("resid_pre", -2), "blocks.0.hook_resid_pre"),
        (("attn", 0), "blocks.0.attn.hook_pattern"),
        ("scale", "ln_final.hook_scale"),
        ("embed", "hook_embed"),
        (("embed",), "hook_embed"),
    ):
        assert cache[key] is cache.cache_dict[name]


def test_a_missing_activation_names_the_nearest_and_where_the_run_ended() -> None:
    cache = ActivationCache({"blocks.0.hook_resid_pre": torch.zeros(1, 2, 3)}, LN.model)
    with pytest.raises(UnknownNameError, match=r"blocks\.1\.hook_resid_pre.*blocks up to 0"):
        cache["resid_pre", 1]
    with pytest.raises(KeyError):
        cache["nothing"]


def test_it_is_read_like_a_dict() -> None:
    cache = LN.cache()
    assert list(cache) == list(cache.keys()) == list(dict(cache.items()))
    assert len(cache) == len(cache.values()) == len(cache.cache_dict)
    assert "hook_embed" in cache
    assert cache.has_embed
    assert cache.has_pos_embed
    assert not RMS.cache().has_pos_embed
    assert cache.to("cpu") is cache
    assert repr(cache).startswith("ActivationCache with keys ['blocks.0.attn.hook_attn_scores'")


def test_what_was_not_recorded_may_be_had_on_demand_with_the_same_slices() -> None:
    asked: list[str] = []

    def more(name: str) -> Tensor:
        asked.append(name)
        return torch.arange(2.0)[:, None]

    cache = ActivationCache({"hook_embed": torch.zeros(2, 1)}, LN.model, more=more)
    assert "hook_extra" not in cache
    assert cache["hook_extra"].shape == (2, 1)
    row = cache.apply_slice_to_batch_dim([1]).remove_batch_dim()
    assert row["hook_extra"].tolist() == [1.0]
    assert cache["hook_extra"].shape == (2, 1)
    assert asked == ["hook_extra"] * 3


def test_gradients_can_be_turned_off_and_on() -> None:
    cache, before = LN.cache(), torch.is_grad_enabled()
    try:
        cache.toggle_autodiff()
        assert not torch.is_grad_enabled()
        cache.toggle_autodiff(True)
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(before)


def test_wrong_options_are_refused() -> None:
    cache = LN.cache()
    with pytest.raises(OptionError, match="mode"), tiny.unchecked():
        cache.decompose_resid(mode="heads")  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match=r"layer must be 0…2"):
        cache.decompose_resid(3)
    assert cache.decompose_resid(0, incl_embeds=False).shape == (0, 2, 6, 32)
    assert cache.stack_head_results(0).shape == (0, 2, 6, 32)
