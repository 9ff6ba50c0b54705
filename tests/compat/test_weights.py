"""Classic weights: row vectors that give the sites, state dicts both ways, and views of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import einsum
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.compat.classic import IDS, folded, fresh, logits, raw
from workbench.compat.transformer_lens.hooked_transformer import HookedTransformer
from workbench.core.errors import OptionError, WeightsError
from workbench.models.transformer import Transformer

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
STACKED = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "b_Q", "b_K", "b_V", "b_O", "b_out")


def plain(kind: str) -> HookedTransformer:
    """A facade over a model without the biases that the classic format has no name for."""
    return HookedTransformer.from_pretrained_no_processing(
        wb.load(tiny.hf(kind), tokenizer=tiny.Bytes())
    )


@kinds
def test_row_vectors_times_weights_are_the_sites(kind: str) -> None:
    facade = raw(kind)
    cache: Any = facade.run_with_cache(IDS, names_filter="*")[1]
    block, layer = facade.blocks[1], 1
    read = cache["normalized", layer, "ln1"]
    read = read if block.ln1.b is not None else read * block.ln1.w
    q = einsum(read, facade.W_Q[layer], "b p d, h d e -> b p h e") + facade.b_Q[layer]
    tiny.close(q, cache["q", layer], 1e-5)
    own: Any = block.attn  # the classic's own names of what has one head per group
    k = einsum(read, own._W_K, "b p d, h d e -> b p h e") + own._b_K
    tiny.close(k, cache["k", layer], 1e-5)
    result = einsum(cache["z", layer], facade.W_O[layer], "b p h e, h e d -> b p h d")
    tiny.close(result, cache["result", layer], 1e-5)
    tiny.close(result.sum(2) + facade.b_O[layer], cache["attn_out", layer], 1e-5)
    written = cache["post", layer] @ facade.W_out[layer] + facade.b_out[layer]
    tiny.close(written, cache["mlp_out", layer], 1e-4)
    final = facade.ln_final(cache["resid_post", -1])
    tiny.close(facade.unembed(final), logits(facade), 1e-4)
    tiny.close(final @ facade.W_U + facade.b_U, logits(facade), 1e-4)


@kinds
def test_a_feed_forward_may_be_called(kind: str) -> None:
    facade = raw(kind)
    cache: Any = facade.run_with_cache(IDS)[1]
    block, stream = facade.blocks[1], cache["resid_mid", 1]
    tiny.close(block.mlp(block.ln2(stream)), cache["mlp_out", 1], 1e-5)
    assert block.mlp(facade.W_E).shape == facade.W_E.shape


@pytest.mark.parametrize("shared", [False, True])
def test_a_write_that_torch_cannot_see_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr("workbench.models.layers.linear.LEAST", 1)
    tiny.hf("llama").save_pretrained(tmp_path)
    source: Any = wb.load(tmp_path) if shared else str(tmp_path)
    facade = HookedTransformer.from_pretrained_no_processing(source)
    with torch.no_grad():
        before = logits(facade)
        gate: Any = facade.blocks[1].mlp.W_gate
        gate.data.zero_()
        after = logits(facade)
    assert not torch.allclose(after, before, atol=1e-3)
    tiny.close(after, logits(facade), 1e-5)  # with gradients, which have one form only


def lent(facade: HookedTransformer, model: Transformer) -> set[str]:
    """The weights that a facade has of a model, and not a copy of."""
    places = {weight.data_ptr() for weight in model.stack.parameters()}
    return {n for n, w in facade.engine.stack.named_parameters() if w.data_ptr() in places}


WRITES: dict[str, Callable[[Any], Any]] = {
    "W_Q": lambda facade: facade.blocks[0].attn.W_Q,
    "b_O": lambda facade: facade.blocks[2].attn.b_O,
    "W_out": lambda facade: facade.blocks[1].mlp.W_out,
    "b_in": lambda facade: facade.blocks[1].mlp.b_in,
    "ln1.w": lambda facade: facade.blocks[1].ln1.w,
    "ln_final.b": lambda facade: facade.ln_final.b,
    "W_E": lambda facade: facade.W_E,
    "W_pos": lambda facade: facade.pos_embed.W_pos,
    "W_U": lambda facade: facade.unembed.W_U,
    "QK": lambda facade: facade.blocks[0].attn.QK.A,
    "state_dict": lambda facade: facade.state_dict()["blocks.0.attn.W_V"],
    "parameters": lambda facade: list(facade.parameters())[3],
    "named_parameters": lambda facade: dict(facade.named_parameters())["blocks.1.mlp.W_in"],
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("processed", [False, True])
def test_a_write_into_a_facade_is_not_one_into_the_model(name: str, processed: bool) -> None:
    model = wb.load(tiny.hf("gpt2"), tokenizer=tiny.Bytes())
    make: Any = HookedTransformer.from_pretrained if processed else plain_of
    facade = make(model)
    if processed and name in ("ln1.w", "ln_final.b"):
        assert WRITES[name](facade) is None  # folded away
        return
    before, said = tiny.digest(model), logits(facade)
    assert processed or len(lent(facade, model)) == len(list(model.stack.parameters()))
    WRITES[name](facade).data[...] = 2.0
    assert tiny.digest(model) == before
    assert not torch.equal(logits(facade), said)  # the facade's own is written to
    assert bool((WRITES[name](facade) == 2.0).all())


def plain_of(model: Transformer) -> HookedTransformer:
    """A facade over the weights of a model, as they are."""
    return HookedTransformer.from_pretrained_no_processing(model)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_facade_copies_what_it_hands_out_and_no_more(kind: str) -> None:
    model = wb.load(tiny.hf(kind), tokenizer=tiny.Bytes())
    facade, names = plain_of(model), {n for n, _ in model.stack.named_parameters()}
    said = logits(facade)
    with tiny.unchecked():  # a check of a protocol reads every property there is
        facade.run_with_cache(IDS)
        facade.generate(IDS, 2)
    assert facade.W_Q.shape[0] == 3  # a stack is a copy already
    assert lent(facade, model) == names
    first, again = facade.blocks[0].attn.W_Q, facade.blocks[0].attn.W_Q
    assert first.data_ptr() == again.data_ptr()  # copied once
    assert names - lent(facade, model) == {"blocks.0.attn.q.weight"}
    assert tiny.same_bytes(logits(facade), said)
    facade.load_state_dict(facade.state_dict())
    facade.process_weights_()
    assert lent(facade, model) == set()
    tiny.close(logits(facade).log_softmax(-1), said.log_softmax(-1), 1e-5)


@kinds
def test_grouped_heads_are_repeated_and_stacks_are_never_stale(kind: str) -> None:
    facade = raw(kind)
    heads = facade.cfg.n_heads
    assert facade.W_K.shape == (3, heads, 24, 8)
    own: Any = facade.blocks[0].attn
    assert torch.equal(facade.W_K[0], own._W_K.repeat_interleave(heads // facade.cfg.groups, 0))
    mine: Any = fresh(kind)
    for name in STACKED:
        part: Any = mine.blocks[1].attn if name[2] in "QKVO" else mine.blocks[1].mlp
        if kind == "gpt2" or not name.startswith(
            "b_"
        ):  # zeros that stand for no bias are no weight
            part.__getattribute__(
                name if name[-1] not in "KV" else f"{'_' * (heads != facade.cfg.groups)}{name}"
            ).data.fill_(2.0)
            assert bool((mine.__getattribute__(name)[1] == 2.0).all()), name
    assert (facade.W_gate is None) == (kind == "gpt2")


@kinds
def test_after_a_move_the_weights_are_the_moved_ones(kind: str) -> None:
    model, facade = tiny.model(kind), fresh(kind)
    before = facade.W_Q
    facade.to(torch.float64)
    assert facade.W_Q.dtype is torch.float64
    assert facade.cfg.dtype is torch.float64
    tiny.close(facade.W_Q, before.double())
    assert model.dtype is torch.float32
    assert facade.to("cpu").engine is facade.engine
    assert logits(facade).dtype is torch.float64


@kinds
def test_products_of_weights_are_factored(kind: str) -> None:
    facade = raw(kind)
    tiny.close(facade.OV.AB, facade.W_V @ facade.W_O, 1e-5)
    tiny.close(facade.QK.AB[1], facade.blocks[1].attn.QK.AB, 1e-5)


@kinds
def test_biases_accumulate(kind: str) -> None:
    facade = raw(kind)
    whole = facade.b_O.sum(0) + facade.b_out.sum(0)
    tiny.close(facade.accumulated_bias(3), whole, 1e-6)
    one = facade.b_O[:2].sum(0)
    tiny.close(facade.accumulated_bias(1, mlp_input=True, include_mlp_biases=False), one, 1e-6)
    assert not bool(facade.accumulated_bias(0).any())
    with pytest.raises(OptionError, match=r"layer must be within 0…3, got 4"):
        facade.accumulated_bias(4)


@kinds
@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores_are_their_formula(kind: str, mode: Any) -> None:
    facade = raw(kind, torch.float64)
    scores = facade.all_composition_scores(mode)
    right = {"Q": facade.QK.AB, "K": facade.QK.AB.mT, "V": facade.OV.AB}[mode]
    left = facade.OV.AB[0, 1] @ right[2, 0]
    expected = left.norm() / (facade.OV.AB[0, 1].norm() * right[2, 0].norm())
    tiny.close(scores[0, 1, 2, 0], expected, 1e-8)
    assert not bool(scores[1, :, :2].any())
    assert scores.shape == (3, facade.cfg.n_heads, 3, facade.cfg.n_heads)
    assert facade.all_head_labels()[-1] == f"L2H{facade.cfg.n_heads - 1}"


@kinds
def test_a_state_dict_goes_out_and_in_again(kind: str) -> None:
    source, target = plain(kind), plain(kind)
    state = {name: value * 1.5 for name, value in source.state_dict().items()}
    assert ("blocks.0.attn._W_K" in state) == (kind == "llama")
    before = tiny.digest(target.engine)
    old = target.engine
    target.load_state_dict(state)
    for name, value in target.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert tiny.digest(old) == before
    assert not torch.allclose(logits(target), logits(source))
    target.load_state_dict(source.state_dict())
    tiny.close(logits(target), logits(source), 1e-5)


@kinds
def test_a_bias_that_was_none_may_be_loaded(kind: str) -> None:
    facade = plain(kind)
    state = facade.state_dict()
    for name in ("attn.b_Q", "attn.b_O", "mlp.b_out", "mlp.b_in"):
        key = f"blocks.1.{name}"
        state[key] = tiny.normal(*state[key].shape)
    state["unembed.b_U"] = tiny.normal(258)
    facade.load_state_dict(state)
    for name, value in facade.state_dict().items():
        assert torch.equal(value, state[name]), name
    cache: Any = facade.run_with_cache(IDS)[1]
    block = facade.blocks[1]
    tiny.close(cache["result", 1].sum(2) + block.attn.b_O, cache["attn_out", 1], 1e-5)


def test_weights_that_do_not_fit_are_listed_in_one_error() -> None:
    facade = plain("gpt2")
    state: dict[str, Tensor] = facade.state_dict()
    state["blocks.0.attn.W_R"] = state.pop("blocks.0.attn.W_Q")
    state["embed.W_E"] = state["embed.W_E"][1:]
    with pytest.raises(WeightsError) as caught:
        facade.load_state_dict(state)
    for part in ("missing: blocks.0.attn.W_Q", "unexpected: blocks.0.attn.W_R", "(257, 24)"):
        assert part in str(caught.value)


def test_biases_that_the_classic_lacks_are_named() -> None:
    with pytest.raises(OptionError, match=r"b_in must be read from a model whose gated neurons"):
        raw("llama").state_dict()


@kinds
def test_processing_rebinds_the_facade_and_leaves_the_model(kind: str) -> None:
    facade, model = fresh(kind), tiny.model(kind)
    before, said = tiny.digest(model), logits(facade).log_softmax(-1)
    facade.process_weights_()
    assert facade.parity is not None
    assert facade.parity.difference < 1e-5
    assert facade.cfg.normalization_type == ("LNPre" if kind == "gpt2" else "RMSPre")
    tiny.close(logits(facade).log_softmax(-1), said, 1e-5)
    assert tiny.digest(model) == before
    assert facade.engine is not model
    assert "blocks.0.ln1.hook_normalized" in facade.run_with_cache(IDS)[1]


@kinds
def test_a_state_dict_without_biases_and_norms_is_filled_up_and_processed(kind: str) -> None:
    facade = plain(kind)
    state = facade.state_dict()
    zero = [name for name in state if ".b_" in name or name.endswith(".b")]
    bare = {name: value for name, value in state.items() if name not in zero}
    bare.pop("ln_final.w")
    facade.load_and_process_state_dict(bare)
    assert facade.parity is not None
    assert facade.parity.applied[0] == "fold_ln"
    assert not bool(facade.b_V.any())
    assert not bool(facade.b_O.any())


def test_from_pretrained_takes_the_loader_s_flags() -> None:
    made = folded("gpt2")
    tiny.close(made.W_U.mean(-1), torch.zeros(24), 1e-6)
    assert not bool(made.b_V.any())
    unfolded = HookedTransformer.from_pretrained(tiny.model("gpt2"), fold_ln=False)
    assert unfolded.cfg.normalization_type == "LN"
    short = HookedTransformer.from_pretrained(tiny.model("gpt2"), first_n_layers=2, n_ctx=16)
    assert short.cfg.n_layers == len(short.blocks) == 2
    assert short.cfg.n_ctx == len(short.W_pos) == 16
    stream = raw("gpt2").run_with_cache(IDS)[1]["resid_post", 1]
    two = HookedTransformer.from_pretrained_no_processing(tiny.model("gpt2"), first_n_layers=2)
    tiny.close(two.run_with_cache(IDS)[1]["resid_post", 1], stream, 1e-6)
    hf: Any = tiny.hf("gpt2")
    half = HookedTransformer.from_pretrained("gpt2", hf_model=hf, dtype="bfloat16")
    assert half.cfg.dtype is torch.bfloat16
    for wrong in ({"checkpoint_index": 1}, {"n_devices": 2}, {"first_n_layers": 9}):
        options: Any = wrong
        with pytest.raises(OptionError, match=next(iter(wrong))):
            HookedTransformer.from_pretrained(tiny.model("gpt2"), **options)
