"""The classic forward and cache: what they return, what they run, what they refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.compat.classic import IDS, folded, fresh, logits, raw
from workbench.compat.transformer_lens.activation_cache import ActivationCache
from workbench.compat.transformer_lens.hooked_transformer import HookedTransformer
from workbench.core.errors import (
    EmptySelectionError,
    NeverActedError,
    NotRecordedError,
    OptionError,
    PromptError,
    ShapeError,
    UnknownNameError,
)

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
RANGES = [(None, None), (0, None), (1, 2), (-1, None), (None, -1), (None, 0), (3, None), (1, 9)]


# --- forward --------------------------------------------------------------------------------------


@kinds
def test_a_forward_is_the_native_run_bit_for_bit(kind: str) -> None:
    assert tiny.same_bytes(logits(raw(kind)), wb.run(tiny.model(kind), IDS).logits)


@kinds
def test_both_gives_logits_and_loss_by_name(kind: str) -> None:
    out: Any = raw(kind)(IDS, return_type="both")
    said = out.logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0]
    tiny.close(out.loss, -said.mean(), 1e-6)
    per: Any = raw(kind)(IDS, return_type="loss", loss_per_token=True)
    tiny.close(per, -said, 1e-6)
    assert raw(kind)(IDS, return_type=None) is None


@kinds
def test_processed_weights_say_the_same(kind: str) -> None:
    tiny.close(logits(folded(kind)).log_softmax(-1), logits(raw(kind)).log_softmax(-1), 1e-5)
    parity = folded(kind).parity
    assert parity is not None
    assert parity.difference < 1e-5


@kinds
@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_a_range_runs_its_blocks_and_no_other(
    kind: str, start: int | None, stop: int | None
) -> None:
    facade, blocks = raw(kind), list(range(3))[start:stop]
    streams = facade.run_with_cache(IDS, names_filter="blocks.*.hook_resid_*")[1]
    after = [streams["resid_pre", 0], *(streams["resid_post", i] for i in range(3))]
    first = slice(start, stop).indices(3)[0]
    given: Any = IDS if start is None else after[first]
    ran: list[int] = []

    def note(value: Tensor, hook: Any) -> None:
        ran.append(hook.layer())

    found = facade.run_with_hooks(
        given,
        start_at_layer=start,
        stop_at_layer=stop,
        fwd_hooks=[(f"blocks.{i}.hook_resid_pre", note) for i in blocks],
    )
    assert ran == blocks
    expected = logits(facade) if stop is None else after[first + len(blocks)]
    tiny.close(torch.as_tensor(found), expected, 1e-5)


@kinds
def test_the_embedding_and_the_rest_are_a_forward(kind: str) -> None:
    stream, ids, short, mask = raw(kind).input_to_embed(IDS)
    assert torch.equal(torch.as_tensor(ids), IDS)
    assert short is None
    assert mask is None
    tiny.close(logits(raw(kind), stream, start_at_layer=0), logits(raw(kind)), 1e-6)
    loss: Any = raw(kind)(stream, start_at_layer=0, tokens=IDS, return_type="loss")
    tiny.close(loss, torch.as_tensor(raw(kind)(IDS, return_type="loss")), 1e-6)


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kind: str, side: Any) -> None:
    facade, texts = raw(kind), ["abcdef", "ab", "xyz"]
    together = facade.run_with_cache(texts, padding_side=side)[0]
    per: Any = facade(texts, padding_side=side, return_type="loss", loss_per_token=True)
    for row, text in enumerate(texts):
        alone = logits(facade, text)[0]
        n = len(alone)
        mine = together[row, -n:] if side == "left" else together[row, :n]
        tiny.close(mine, alone, 1e-5)
        lone: Any = facade(text, return_type="loss", loss_per_token=True)
        tiny.close(per[row].sum(), lone.sum(), 1e-4)
    whole: Any = facade(texts, padding_side=side, return_type="loss")
    pairs = sum(len(text) for text in texts)  # the beginning token is prepended
    tiny.close(whole, per.sum() / pairs, 1e-5)


@kinds
def test_a_mask_says_which_ids_are_real(kind: str) -> None:
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = torch.tensor([[0] * 3 + [1] * 7] * 2)
    found = logits(raw(kind), padded, attention_mask=mask)
    tiny.close(found[:, 3:], logits(raw(kind)), 1e-5)


# --- cache ----------------------------------------------------------------------------------------


@kinds
def test_a_cache_of_everything_holds_what_the_flags_enable_and_answers_the_rest(kind: str) -> None:
    facade = fresh(kind)
    _, cache = facade.run_with_cache(IDS)
    native = wb.run(tiny.model(kind), IDS, record=tiny.model(kind).sites)
    on_demand = {"hook_result", "input", "hook_attn_in", "hook_mlp_in", "hook_unembed"}
    rest = {str(s) for s in native if str(s).rsplit("_", 1)[-1] == "input"}
    rest |= {str(s) for s in native if str(s).rsplit(".", 1)[-1] in on_demand}
    assert set(cache) == {str(site) for site in native} - rest
    for site, value in native.items():
        tiny.close(cache[str(site)], value, 1e-5)
    facade.set_use_attn_result(True)
    facade.set_use_hook_mlp_in(True)
    facade.set_use_split_qkv_input(True)
    more = facade.run_with_cache(IDS)[1]
    assert rest - set(more) <= {"hook_unembed", *(f"blocks.{i}.hook_attn_in" for i in range(3))}


FILTERS: list[Any] = [
    "blocks.1.hook_resid_post",
    "blocks.[0-9].hook_resid_post",
    ["blocks.0.attn.hook_z", "blocks.1.hook_resid_post"],
    ("blocks.0.attn.hook_z",),
    {"blocks.0.attn.hook_z"},
    lambda name: name.endswith("hook_result"),
]


@pytest.mark.parametrize("names", FILTERS)
def test_every_kind_of_filter_chooses_names(names: Any) -> None:
    cache = raw("gpt2").run_with_cache(IDS, names_filter=names, return_cache_object=False)[1]
    assert cache
    assert all(name.endswith(("resid_post", "hook_z", "hook_result")) for name in cache)


def test_a_filter_that_chooses_nothing_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"No site named 'blocks.0.attn.z'. Nearest"):
        raw("gpt2").run_with_cache(IDS, names_filter="blocks.0.attn.z")
    with pytest.raises(EmptySelectionError, match="names_filter"):
        raw("gpt2").run_with_cache(IDS, names_filter=lambda name: False)


def test_a_name_behind_the_stop_says_where_the_run_stopped() -> None:
    with pytest.raises(NotRecordedError, match="it ran blocks 0 to 0"):
        raw("gpt2").run_with_cache(IDS, names_filter="blocks.2.hook_resid_pre", stop_at_layer=1)
    cache = raw("gpt2").run_with_cache(IDS, stop_at_layer=1)[1]
    assert "blocks.0.hook_resid_post" in cache
    with pytest.raises(KeyError, match="it ran blocks 0 to 0"):
        _ = cache["resid_post", 2]


@kinds
def test_positions_are_what_a_slice_cuts(kind: str) -> None:
    facade = raw(kind)
    whole = facade.run_with_cache(IDS, names_filter="*", return_cache_object=False)[1]
    for cut, kept in ((3, [3]), ((1, 4), [1, 2, 3]), ([0, 5], [0, 5])):
        part: Any = facade.run_with_cache(
            IDS, names_filter="*", return_cache_object=False, pos_slice=cut
        )[1]
        for name, value in part.items():
            axis = 2 if name.endswith(("hook_attn_scores", "hook_pattern")) else 1
            assert torch.equal(value, whole[name].index_select(axis, torch.tensor(kept))), name


def test_one_row_may_lose_its_axis_and_several_may_not() -> None:
    cache = raw("gpt2").run_with_cache(IDS[:1], remove_batch_dim=True)[1]
    assert cache["resid_pre", 0].shape == (7, 24)
    assert not cache.has_batch_dim
    with pytest.raises(ShapeError, match="remove_batch_dim: expected a single row, got 2"):
        raw("gpt2").run_with_cache(IDS, remove_batch_dim=True)


@kinds
def test_backward_gives_the_native_gradients_and_touches_no_parameter(kind: str) -> None:
    facade, model = raw(kind, torch.float64), tiny.model(kind, torch.float64)
    site = "blocks.1.hook_resid_post"
    loss, cache = facade.run_with_cache(
        IDS, return_type="loss", incl_bwd=True, names_filter=[site, "blocks.0.attn.hook_q"]
    )
    assert set(cache) == {site, "blocks.0.attn.hook_q", f"{site}_grad", "blocks.0.attn.hook_q_grad"}
    step, x = 1e-6, tiny.normal(2, 7, 24, dtype=torch.float64)

    def shifted(size: float) -> Tensor:
        out = facade.run_with_hooks(
            IDS, return_type="loss", fwd_hooks=[(site, lambda v, hook: v + size * x)]
        )
        return torch.as_tensor(out)

    slope = (shifted(step) - shifted(-step)) / (2 * step)
    tiny.close((cache[f"{site}_grad"] * x).sum(), slope, 1e-6)
    assert not loss.requires_grad or loss.numel() == 1
    assert all(weight.grad is None for weight in model.stack.parameters())
    with pytest.raises(OptionError, match="incl_bwd must be asked of a scalar output"):
        facade.run_with_cache(IDS, incl_bwd=True)


def test_what_a_cache_holds_is_not_changed_by_later_hooks() -> None:
    facade = raw("gpt2")
    clean = facade.run_with_cache(IDS, names_filter="blocks.0.hook_resid_post")[1]

    def wipe(value: Tensor, hook: Any) -> None:
        value[:] = 0

    edited = facade.run_with_cache(
        IDS,
        names_filter=["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"],
        fwd_hooks=[("blocks.1.hook_resid_pre", wipe)],
    )[1]
    assert torch.equal(edited["resid_post", 0], clean["resid_post", 0])
    assert not bool(edited["resid_pre", 1].any())


# --- refusals -------------------------------------------------------------------------------------


def test_options_that_are_none_are_refused_by_name() -> None:
    facade: Any = raw("gpt2")
    with tiny.unchecked():
        with pytest.raises(OptionError, match="return_type must be 'logits', 'loss', 'both' or"):
            facade(IDS, return_type="logit")
        with pytest.raises(OptionError, match="padding_side must be 'left' or 'right'"):
            facade("ab", padding_side="middle")
        with pytest.raises(OptionError, match="start_at_layer must be given with the residual"):
            facade(IDS, start_at_layer=1)
        for wrong in ("return_tpye", "name_filter", "fwd_hook"):
            with pytest.raises(TypeError, match=wrong):
                facade.run_with_cache(IDS, **{wrong: None})
        with pytest.raises(TypeError, match="max_tokens"):
            facade.generate("ab", max_tokens=3)


def test_inputs_that_cannot_be_run_are_refused() -> None:
    facade = raw("gpt2")
    with pytest.raises(PromptError, match="ids outside 0…257: 258"):
        facade(torch.tensor([[1, 258]]))
    with pytest.raises(PromptError, match="33 tokens; gpt2 reads at most 32"):
        facade(tiny.tokens(1, 33))
    with pytest.raises(ShapeError, match=r"attention_mask: expected \(2, 7\)"):
        facade(IDS, attention_mask=torch.ones(2, 6))
    with pytest.raises(ShapeError, match=r"attention_mask: expected \(2, 7\)"):
        facade(IDS, attention_mask=torch.ones(2, 9))  # of what would it be, without a cache?
    with pytest.raises(ShapeError, match=r"input: expected \(batch pos 24\), got \(2, 7, 23\)"):
        facade(torch.zeros(2, 7, 23), start_at_layer=1)
    with (
        tiny.unchecked(),
        pytest.raises(ShapeError, match=r"tokens: expected \(2, 7\), got \(2, 6\)"),
    ):
        facade(torch.zeros(2, 7, 24), start_at_layer=1, tokens=IDS[:, :6], return_type="loss")
    bare = HookedTransformer.from_pretrained_no_processing(wb.load(tiny.hf("gpt2")))
    with pytest.raises(PromptError, match="no tokenizer: pass token ids"):
        bare("ab")


def test_a_hook_that_never_ran_is_an_error() -> None:
    with pytest.raises(NeverActedError, match=r"blocks.2.hook_resid_pre was never called: it ran"):
        raw("gpt2").run_with_hooks(
            IDS, stop_at_layer=1, fwd_hooks=[("blocks.2.hook_resid_pre", lambda v, hook: None)]
        )


@kinds
def test_the_cache_of_a_facade_takes_the_stream_apart(kind: str) -> None:
    facade = folded(kind)
    cache: Any = facade.run_with_cache(IDS)[1]
    assert isinstance(cache, ActivationCache)
    parts, labels = cache.get_full_resid_decomposition(return_labels=True)
    tiny.close(parts.sum(0), cache["resid_post", -1], 1e-4)
    assert "bias" in labels


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_hook_points_are_attributes_of_what_they_are_in(kind: str) -> None:
    facade, seen = fresh(kind), list[str]()
    block: Any = facade.blocks[1]
    points = [facade.hook_embed, block.hook_resid_mid, block.attn.hook_pattern]
    points += [block.ln1.hook_scale, block.mlp.hook_post, facade.ln_final.hook_normalized]
    for point in points:
        assert point is facade.hook_dict[point.name]
        point.add_hook(lambda value, hook: seen.append(hook.name))
    logits(facade)
    assert seen == sorted((p.name for p in points), key=list(facade.hook_dict).index)
    if kind == "llama":
        with pytest.raises(AttributeError, match="no hook point 'hook_pos_embed'"):
            _ = facade.hook_pos_embed
    with pytest.raises(AttributeError, match="AttentionWeights has no 'hook_zz'"):
        _ = block.attn.hook_zz
    with pytest.raises(AttributeError, match="BlockWeights has no 'W_Q'"):
        _ = block.W_Q


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_block_may_be_called(kind: str) -> None:
    facade, wanted = fresh(kind), ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    cache: Any = facade.run_with_cache(IDS, names_filter=wanted)[1]
    after = facade.blocks[1](cache["resid_pre", 1])
    assert tiny.same_bytes(after, cache["resid_post", 1])
    mask = torch.ones_like(IDS)
    mask[:, 0] = 0
    masked = facade.run_with_cache(IDS, attention_mask=mask, names_filter=wanted)[1]
    found = facade.blocks[1](masked["resid_pre", 1], mask)
    assert tiny.same_bytes(found[:, 1:], masked["resid_post", 1][:, 1:])
    facade.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value * 0)
    assert not torch.equal(facade.blocks[1](cache["resid_pre", 1]), after)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_parts_are_listed_by_the_classic_s_names(kind: str) -> None:
    facade = fresh(kind)
    found = dict(facade.named_modules())
    assert found[""] is facade
    assert found["blocks.1.attn"] is facade.blocks[1].attn
    assert {n for n, p in found.items() if p in facade.hook_points()} == set(facade.hook_dict)
    assert ("pos_embed" in found) == (kind == "gpt2")
    assert len(list(facade.modules())) == len(found)
    top = {"embed", "hook_embed", "blocks", "ln_final", "unembed"}
    top |= {"pos_embed", "hook_pos_embed"} if kind == "gpt2" else set()
    assert {name for name, _ in facade.named_children()} - {"hook_unembed"} == top
    assert len(list(facade.children())) == len(top) + 1


def test_a_facade_is_converted_as_a_module_is() -> None:
    facade, before = fresh(), tiny.digest(tiny.model("gpt2"))
    assert facade.double() is facade
    assert logits(facade).dtype is facade.cfg.dtype is torch.float64
    assert logits(facade.half()).dtype is torch.float16
    assert logits(facade.bfloat16()).dtype is torch.bfloat16
    assert logits(facade.float()).dtype is torch.float32
    assert tiny.digest(tiny.model("gpt2")) == before
