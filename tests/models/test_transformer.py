"""The hooked forward: what fires is what is listed, and every site obeys the field's identities."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.axes import GROUPED
from workbench.core.data import batch_of
from workbench.core.protocols import Model
from workbench.core.sites import Site
from workbench.core.tap import UNTAPPED

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
PROMPT = tiny.tokens(2, 7)
FUSED = (
    "hook_scale",
    "hook_normalized",
    "hook_attn_scores",
    "hook_pattern",
    "hook_result",
    "hook_attn_in",
    "hook_q_input",
    "hook_k_input",
    "hook_v_input",
)


def is_fused(site: Site) -> bool:
    """Whether a site lies inside a kernel that is opened only when somebody asks."""
    return str(site).endswith(FUSED)


@cache
def everything(kind: str) -> wb.Trace:
    """A run in float64 with every site recorded."""
    model = tiny.model(kind, torch.float64)
    return wb.run(model, PROMPT, record=model.sites)


def at(kind: str, layer: int) -> Callable[[str], Tensor]:
    """What was recorded within a block."""
    trace = everything(kind)
    return lambda name: trace[f"blocks.{layer}.{name}"]


def weight(kind: str, name: str) -> Tensor:
    """A weight by its name in the stack."""
    return tiny.model(kind, torch.float64).stack.get_parameter(name)


blocks = pytest.mark.parametrize(
    ("kind", "layer"), [(kind, layer) for kind in tiny.KINDS for layer in range(3)]
)


# --- sites --------------------------------------------------------------------------------------


@kinds
def test_it_is_a_model(kind: str) -> None:
    assert isinstance(tiny.model(kind), Model)


@kinds
def test_the_sites_listed_fire_once_each_in_order_with_their_axes(kind: str) -> None:
    model, spy = tiny.model(kind), tiny.Spy()
    wb.run(model, PROMPT, tap=spy)
    assert spy.sites == list(model.sites)
    sizes = model.sizes
    lengths = {
        "batch": 2,
        "pos": 7,
        "query": 7,
        "key": 7,
        "d_model": sizes.d_model,
        "d_head": sizes.d_head,
        "d_mlp": sizes.d_mlp,
        "d_vocab": sizes.d_vocab,
        "1": 1,
    }
    for site, shape in spy.fired:
        heads = sizes.n_key_value_heads if site.short in GROUPED else sizes.n_heads
        assert shape == tuple({**lengths, "head": heads}[axis] for axis in site.axes), site


@kinds
def test_what_nobody_asks_for_stays_fused(kind: str) -> None:
    model, spy = tiny.model(kind), tiny.Spy(lambda site: False)
    wb.run(model, PROMPT, tap=spy)
    assert spy.sites == [site for site in model.sites if not is_fused(site)]


@kinds
def test_asking_for_one_layer_opens_that_layer_alone(kind: str) -> None:
    asked = Site("blocks.{}.attn.hook_pattern", 1)
    spy = tiny.Spy(lambda site: site == asked)
    wb.run(tiny.model(kind), PROMPT, tap=spy)
    opened = [site for site in spy.sites if is_fused(site)]
    assert opened == [Site("blocks.{}.attn.hook_attn_scores", 1), asked]


@kinds
def test_a_decode_step_fires_the_same_sites_as_a_prompt(kind: str) -> None:
    model = tiny.model(kind)
    seen: list[Site] = []
    record = [wb.Intervention(site, tap_at(seen, site)) for site in model.sites]
    wb.generate(model, PROMPT[:1], plan=record, max_new_tokens=3)
    assert seen == list(model.sites) * 3


def tap_at(seen: list[Site], site: Site) -> Callable[[Tensor], Tensor]:
    """A bare function that notes where it is."""

    def change(value: Tensor) -> Tensor:
        seen.append(site)
        return value

    return change


# --- the same numbers however they are asked for ------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recording_everything_changes_no_logit_beyond_rounding(
    kind: str, dtype: torch.dtype
) -> None:
    model = tiny.model(kind, dtype)
    opened = wb.run(model, PROMPT, record=model.sites).logits
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    tiny.close(opened, wb.run(model, PROMPT).logits, tolerance)


@kinds
def test_an_identity_tap_outside_the_fused_kernels_is_bit_exact(kind: str) -> None:
    model = tiny.model(kind)
    spy = tiny.Spy(lambda site: not is_fused(site))
    tapped = wb.run(model, PROMPT, tap=spy, record=lambda site: not is_fused(site))
    assert tiny.same_bytes(tapped.logits, wb.run(model, PROMPT).logits)


@kinds
def test_setting_a_site_to_its_own_value_is_an_identity_tap_to_the_bit(kind: str) -> None:
    model = tiny.model(kind)
    for site in model.sites:
        if site.short == "attn.hook_attn_scores":
            continue  # masked scores are -inf, which no operand may hold
        identity = wb.run(model, PROMPT, record=[site])
        own = [wb.Intervention(site, wb.ops.set(identity[site]))]
        again = wb.run(model, PROMPT, plan=own)
        assert tiny.same_bytes(again.logits, identity.logits), site
        assert again.receipts[0].change == 0


@kinds
def test_ranges_compose(kind: str) -> None:
    model = tiny.model(kind)
    batch = batch_of(model, PROMPT)
    resid = model.embed(batch, UNTAPPED)
    whole = model.layers(resid, batch, UNTAPPED)
    for middle in range(model.sizes.n_layers + 1):
        half = model.layers(resid, batch, UNTAPPED, last=middle)
        assert tiny.same_bytes(model.layers(half, batch, UNTAPPED, first=middle), whole)


@kinds
def test_a_change_at_a_position_leaves_what_comes_before_bit_exact(kind: str) -> None:
    model = tiny.model(kind)
    cut = wb.Intervention("blocks.0.hook_resid_post", wb.ops.scale(3.0), positions=4)
    before, after = wb.run(model, PROMPT).logits, wb.run(model, PROMPT, plan=[cut]).logits
    assert tiny.same_bytes(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@kinds
def test_some_vocabulary_columns_are_those_columns(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    batch = batch_of(model, PROMPT)
    resid = model.layers(model.embed(batch, UNTAPPED), batch, UNTAPPED)
    columns = torch.tensor([200, 3, 3, 0])
    full = model.unembed(resid, UNTAPPED)
    some = model.unembed(resid, UNTAPPED, vocabulary=columns)
    tiny.close(some, full[..., columns])


# --- identities (reference: engine.md §6), float64 ----------------------------------------------


@blocks
def test_the_stream_is_the_sum_of_what_is_added(kind: str, layer: int) -> None:
    here = at(kind, layer)
    mid = here("hook_resid_pre") + here("hook_attn_out")
    tiny.close(mid, here("hook_resid_mid"))
    tiny.close(here("hook_resid_mid"), here("hook_mlp_in"))
    post = here("hook_resid_mid") + here("hook_mlp_out")
    tiny.close(post, here("hook_resid_post"))
    if layer < 2:
        after = at(kind, layer + 1)("hook_resid_pre")
        assert tiny.same_bytes(here("hook_resid_post"), after)


@kinds
def test_the_stream_begins_with_the_embeddings(kind: str) -> None:
    trace = everything(kind)
    stream = trace["hook_embed"]
    if kind == "gpt2":
        stream = stream + trace["hook_pos_embed"]
    tiny.close(stream, trace["blocks.0.hook_resid_pre"])
    tiny.close(trace["hook_embed"], weight(kind, "embed.tokens")[PROMPT])


@blocks
def test_heads_and_bias_are_what_attention_adds(kind: str, layer: int) -> None:
    here, name = at(kind, layer), f"blocks.{layer}.attn.o"
    heads = here("attn.hook_z").shape[2]
    by_head = weight(kind, f"{name}.weight").unflatten(1, (heads, -1))  # d_model head d_head
    result = einsum(here("attn.hook_z"), by_head, "b p h e, d h e -> b p h d")
    tiny.close(result, here("attn.hook_result"))
    tiny.close(result.sum(2) + weight(kind, f"{name}.bias"), here("hook_attn_out"))


@blocks
def test_pattern_is_the_softmax_of_scores_and_mixes_values(kind: str, layer: int) -> None:
    here = at(kind, layer)
    scores, pattern = here("attn.hook_attn_scores"), here("attn.hook_pattern")
    tiny.close(scores.softmax(-1), pattern)
    tiny.close(pattern.sum(-1), torch.ones(pattern.shape[:3]).double())
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    assert bool((pattern[..., future] == 0).all())
    assert bool((scores[..., future] == -torch.inf).all())
    values = each_head(here("attn.hook_v"), pattern.shape[1])
    mixed = einsum(pattern, values, "b h q k, b k h e -> b q h e")
    tiny.close(mixed, here("attn.hook_z"))


@blocks
def test_scores_are_scaled_products_of_queries_and_keys(kind: str, layer: int) -> None:
    here = at(kind, layer)
    rot = "rot_" if kind == "llama" else ""
    q, k = here(f"attn.hook_{rot}q"), here(f"attn.hook_{rot}k")
    products = einsum(q, each_head(k, q.shape[2]), "b q h e, b k h e -> b h q k")
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    scores = here("attn.hook_attn_scores")
    scaled = products / q.shape[-1] ** 0.5
    tiny.close(scores[..., visible], scaled[..., visible])


@pytest.mark.parametrize("layer", range(3))
def test_queries_and_keys_are_turned_by_their_position(layer: int) -> None:
    here = at("llama", layer)
    half = torch.arange(0, 8, 2, dtype=torch.float32) / 8
    turn = torch.arange(7)[:, None].float() * (1 / 10000**half)  # float32, as transformers has it
    cos, sin = (f(turn).double()[None, :, None] for f in (torch.cos, torch.sin))
    for name in "qk":
        x, y = here(f"attn.hook_{name}").chunk(2, -1)
        turned = torch.cat([x * cos - y * sin, y * cos + x * sin], -1)
        tiny.close(turned, here(f"attn.hook_rot_{name}"))


READS = (
    ("ln1", "hook_resid_pre", ("attn.q", "attn.hook_q"), ("attn.q", "attn.hook_q")),
    ("ln2", "hook_mlp_in", ("mlp.gate", "mlp.hook_pre"), ("mlp.up", "mlp.hook_pre")),
)


@blocks
@pytest.mark.parametrize(("norm", "site", "llama", "gpt2"), READS, ids=["ln1", "ln2"])
def test_a_norm_is_its_formula_and_feeds_the_next_linear_map(
    kind: str,
    layer: int,
    norm: str,
    site: str,
    llama: tuple[str, str],
    gpt2: tuple[str, str],
) -> None:
    here, x = at(kind, layer), at(kind, layer)(site)
    gain = weight(kind, f"blocks.{layer}.{norm}.weight")
    if kind == "llama":
        scale = (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        inside = x / scale  # before the weight
        read, (name, seen) = inside * gain, llama
    else:
        scale = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        shift = weight(kind, f"blocks.{layer}.{norm}.bias")
        inside = (x - x.mean(-1, keepdim=True)) / scale * gain + shift  # after weight and bias
        read, (name, seen) = inside, gpt2
    tiny.close(scale, here(f"{norm}.hook_scale"))
    tiny.close(inside, here(f"{norm}.hook_normalized"))
    linear = f"blocks.{layer}.{name}"
    mapped = read @ weight(kind, f"{linear}.weight").T + weight(kind, f"{linear}.bias")
    tiny.close(mapped, here(seen).flatten(2))


@blocks
def test_neurons_and_bias_are_what_the_mlp_adds(kind: str, layer: int) -> None:
    here, name = at(kind, layer), f"blocks.{layer}.mlp.down"
    if kind == "llama":
        post = F.silu(here("mlp.hook_pre")) * here("mlp.hook_pre_linear")
    else:
        post = F.gelu(here("mlp.hook_pre"), approximate="tanh")
    tiny.close(post, here("mlp.hook_post"))
    written = post @ weight(kind, f"{name}.weight").T + weight(kind, f"{name}.bias")
    tiny.close(written, here("hook_mlp_out"))


@kinds
def test_logits_are_the_unembedded_final_norm(kind: str) -> None:
    trace = everything(kind)
    read = trace["ln_final.hook_normalized"]
    if kind == "llama":
        read = read * weight(kind, "ln_final.weight")
    tiny.close(read @ weight(kind, "unembed.weight").T, trace.logits)
    assert tiny.same_bytes(trace["hook_unembed"], trace.logits)


def each_head(x: Tensor, heads: int) -> Tensor:
    """Keys or values of every head, from those of groups."""
    return x.repeat_interleave(heads // x.shape[2], 2)


# --- a model never changes ----------------------------------------------------------------------


@kinds
def test_weights_are_frozen_and_in_evaluation_mode(kind: str) -> None:
    model = tiny.model(kind)
    assert not any(weight.requires_grad for weight in model.stack.parameters())
    assert not any(module.training for module in model.stack.modules())
    assert not list(model.stack.buffers())


@kinds
def test_it_shows_its_sizes(kind: str) -> None:
    assert repr(tiny.model(kind)) == (
        f"Transformer({kind!r}, 3 layers x {4 if kind == 'llama' else 3} heads, d_model 24, "
        "float32, cpu)"
    )


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_norms_scores_and_pattern_in_float32(
    kind: str, dtype: torch.dtype
) -> None:
    model = tiny.model(kind, dtype)
    trace = wb.run(model, PROMPT, record=model.sites)
    assert trace.logits.dtype is dtype
    for site, value in trace.items():
        inside = site.short.endswith(("hook_attn_scores", "hook_pattern")) or (
            ".hook_scale" in str(site) or ".hook_normalized" in str(site)
        )
        assert value.dtype is (torch.float32 if inside else dtype), site
    full = wb.run(tiny.model(kind), PROMPT).logits
    error = (trace.logits.float() - full).norm() / full.norm()
    assert error < (0.1 if dtype is torch.bfloat16 else 0.02)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_every_operator(kind: str, dtype: torch.dtype) -> None:
    model = tiny.model(kind, dtype)
    for operator in (wb.ops.add(torch.ones(24)), wb.ops.project_out(torch.ones(24))):
        plan = [wb.Intervention("blocks.1.hook_resid_post", operator, strength=0.5)]
        trace = wb.run(model, PROMPT, plan=plan)
        assert trace.logits.dtype is dtype
        assert trace.receipts[0].change > 0
