"""Bricks by themselves: the open path of each is its formula, the fused one equals the open one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import tiny
from workbench.core.cache import KeyValueCache
from workbench.core.data import Batch
from workbench.core.tap import UNTAPPED
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import (
    Pass,
    View,
    in_block,
    opened,
    outside_blocks,
    views,
    visibility,
)
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP, GatedMLP
from workbench.models.layers.norm import (
    LayerNorm,
    NoNorm,
    Norm,
    OverHeadsRMSNorm,
    RMSNorm,
    ShiftedRMSNorm,
    Times,
    UnbiasedLayerNorm,
)
from workbench.models.layers.positions import Rotary, rotary, rotate, rotate_neighbours

AT = in_block(0)
X = tiny.normal(2, 5, 6, dtype=torch.float64)
OPEN = tiny.Spy()


def drawn(module: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """The module with random weights, all of them frozen."""
    draws = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.data = torch.randn(weight.shape, generator=draws, dtype=torch.float64).to(dtype)
    return module.requires_grad_(requires_grad=False)


def norms(dtype: torch.dtype = torch.float64) -> dict[str, Norm]:
    """One of each."""
    made = {
        "rms": RMSNorm(6, 1e-3, AT, "ln1"),
        "layer": LayerNorm(6, 1e-3, AT, "ln1"),
        "shifted": ShiftedRMSNorm(6, 1e-3, AT, "ln1"),
        "unbiased": UnbiasedLayerNorm(6, 1e-3, AT, "ln1"),
        "none": NoNorm(),
        "times": Times(0.3),
    }
    return {name: norm for name, norm in made.items() if drawn(norm, dtype)}


# --- norms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", norms())
def test_a_norm_says_the_same_open_and_fused(name: str) -> None:
    norm = norms()[name]
    tiny.close(norm.normalise(X, OPEN), norm.normalise(X, UNTAPPED), 1e-12)


@pytest.mark.parametrize("name", ["rms", "layer", "shifted", "unbiased"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_keeps_its_input_s_dtype(name: str, dtype: torch.dtype) -> None:
    norm = norms(dtype)[name]
    for tap in (OPEN, UNTAPPED):
        assert norm.normalise(X.to(dtype), tap).dtype is dtype


def test_norms_are_their_formulas() -> None:
    mean, made = X.mean(-1, keepdim=True), norms()
    rms = X / (X.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    centred = (X - mean) / ((X - mean).square().mean(-1, keepdim=True) + 1e-3).sqrt()
    expected = {"shifted": rms, "unbiased": centred}
    for name, plain in expected.items():
        weight = dict(made[name].named_parameters())["weight"]
        tiny.close(made[name].normalise(X, UNTAPPED), plain * (weight + (name == "shifted")), 1e-12)
    tiny.close(made["times"].normalise(X, OPEN), X * 0.3, 0)


@pytest.mark.parametrize("over", [True, False])
def test_a_norm_over_heads_divides_all_by_one_scale(over: bool) -> None:
    """Else each by its own; an unbiased one has weights for each head."""
    x, name = tiny.normal(2, 5, 3, 4, dtype=torch.float64), "attn.q_norm"
    norm = (
        OverHeadsRMSNorm(12, 1e-3, AT, name) if over else UnbiasedLayerNorm((3, 4), 0.1, AT, name)
    )
    drawn(norm)
    flat = x.flatten(-2)
    scaled = flat / (flat.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.flatten()
    alone = torch.stack(
        [F.layer_norm(x[..., h, :], (4,), norm.weight[h], eps=0.1) for h in range(3)], -2
    ) if not over else scaled.unflatten(-1, (3, 4))  # fmt: skip
    for tap in (OPEN, UNTAPPED):
        tiny.close(norm.normalise(x, tap), alone, 1e-12)
    spy = tiny.Spy()
    norm.normalise(x, spy)
    assert spy.fired == [(norm.scale, (2, 5, 3, 1)), (norm.normalized, (2, 5, 3, 4))]


def test_no_norm_is_none() -> None:
    assert NoNorm().normalise(X, OPEN) is X
    assert NoNorm().sites == ()


# --- rotary -------------------------------------------------------------------------------------


def turning() -> Rotary:
    """Eight coordinates, four frequencies."""
    return rotary(8, {"rope_theta": 100.0})


@given(shift=st.integers(0, 500), one=st.integers(0, 30), other=st.integers(0, 30))
def test_products_depend_on_the_distance_alone(shift: int, one: int, other: int) -> None:
    q, k = (tiny.normal(1, 1, 1, 8, seed=s, dtype=torch.float64) for s in (1, 2))

    def product(a: int, b: int) -> Tensor:
        turn = turning()
        left = rotate(q, turn.angles(torch.tensor([[a]]), torch.float64))
        right = rotate(k, turn.angles(torch.tensor([[b]]), torch.float64))
        return (left * right).sum()

    tiny.close(product(one, other), product(one + shift, other + shift), 1e-3)  # angles: float32


def test_turning_keeps_norms_and_position_0_turns_nothing() -> None:
    x = tiny.normal(2, 5, 3, 8)
    turned = rotate(x, turning().angles(torch.arange(5)[None], torch.float32))
    tiny.close(turned.norm(dim=-1), x.norm(dim=-1), 1e-5)
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.allclose(turned[:, 1], x[:, 1])


def test_neighbours_turn_as_halves_do_in_another_order_and_the_rest_stays() -> None:
    x = tiny.normal(2, 5, 3, 10)
    steps = 1.0 / 100.0 ** (torch.arange(0, 8, 2) / 8)
    at = torch.arange(5)[None]
    halves = rotate(x, Rotary(steps).angles(at, torch.float32))
    order = [0, 2, 4, 6, 1, 3, 5, 7, 8, 9]  # pairs (2i, 2i + 1) moved to (i, i + half)
    back = [order.index(i) for i in range(10)]
    pairs = rotate_neighbours(x[..., back], Rotary(steps, neighbours=True).angles(at, x.dtype))
    tiny.close(pairs[..., order], halves, 1e-6)
    assert torch.equal(halves[..., 8:], x[..., 8:])


# --- attention ----------------------------------------------------------------------------------


def attention(*, heads: int = 4, groups: int = 2, turn: bool = False) -> Attention:
    """A small one with every weight drawn."""
    made = Attention(0, 6, heads, groups, 8, AT, scale=0.3, rotary=turn, bias=True, out_bias=True)
    drawn(made)
    return made


def whole(x: Tensor, real: Tensor | None = None, *, causal: bool = True) -> Pass:
    """An uncached pass over x."""
    rows, length = x.shape[:2]
    zeros = torch.zeros(rows, dtype=torch.long)
    batch = Batch(torch.zeros(rows, length, dtype=torch.long), real, zeros, zeros + length)
    return Pass(None, *visibility(batch, None, causal=causal), None)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_says_the_same_open_and_fused(groups: int, causal: bool) -> None:
    attn, now = attention(groups=groups), whole(X, causal=causal)
    tiny.close(attn.attend(X, OPEN, now), attn.attend(X, UNTAPPED, now), 1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
def test_pads_are_seen_by_nobody_but_themselves(side: str, causal: bool) -> None:
    attn = attention()
    real = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    real = real.flip(1) if side == "left" else real
    now = whole(X, real, causal=causal)
    for tap in (OPEN, UNTAPPED):
        out = attn.attend(X, tap, now)
        alone = attn.attend(X[:1][:, real[0]], tap, whole(X[:1][:, real[0]], causal=causal))
        tiny.close(out[:1][:, real[0]], alone, 1e-12)
        assert bool(out.isfinite().all())


def test_causal_attention_is_its_formula() -> None:
    attn = attention(heads=1, groups=1)
    q, k, v = attn.q(X), attn.k(X), attn.v(X)
    scores = (q @ k.mT) * 0.3
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    tiny.close(attn.o(scores.softmax(-1) @ v), attn.attend(X, UNTAPPED, whole(X)), 1e-12)


@pytest.mark.parametrize("sizes", [[5], [1] * 5, [2, 3], [4, 1], [1, 3, 1]])
@pytest.mark.parametrize("open_", [True, False])
def test_chunks_with_a_cache_equal_one_pass(sizes: list[int], open_: bool) -> None:
    attn = attention()
    tap = OPEN if open_ else UNTAPPED
    cache = KeyValueCache(1, 2, 5, 2, 8, dtype=torch.float64, device=torch.device("cpu"))
    parts, start = [], 0
    for size in sizes:
        x = X[:, start : start + size]
        at = torch.full((2,), start)
        batch = Batch(torch.zeros(2, size, dtype=torch.long), None, at, at + 5)
        now = Pass(None, *visibility(batch, cache, causal=True), cache)
        parts.append(attn.attend(x, tap, now))
        start += size
    tiny.close(torch.cat(parts, 1), attn.attend(X, tap, whole(X)), 1e-12)


# --- mlp, embedding -----------------------------------------------------------------------------


def test_a_plain_mlp_is_its_formula() -> None:
    mlp = MLP(6, 9, F.relu, AT, bias=True)
    drawn(mlp)
    expected = F.relu(X @ mlp.up.weight.T + mlp.up.bias) @ mlp.down.weight.T + mlp.down.bias
    tiny.close(mlp.feed(X, UNTAPPED), expected, 1e-12)


def test_a_gated_mlp_is_its_formula() -> None:
    mlp = GatedMLP(6, 9, F.silu, AT, bias=False)
    drawn(mlp)
    gate, up = X @ mlp.gate.weight.T, X @ mlp.up.weight.T
    tiny.close(mlp.feed(X, UNTAPPED), (F.silu(gate) * up) @ mlp.down.weight.T, 1e-12)
    assert mlp.up.bias is None


@pytest.mark.parametrize("learned", [True, False])
def test_an_embedding_looks_up_tokens_and_absolute_positions(learned: bool) -> None:
    embed = Embedding(11, 6, 7 if learned else None)
    drawn(embed)
    batch = tiny.batch([[3, 4], [5, 6, 7]], [2, 3], "left")
    resid = embed.embed(batch, UNTAPPED)
    expected = embed.tokens[batch.tokens]
    if embed.positions is not None:
        places = torch.tensor([[0, 0, 1], [0, 1, 2]])
        assert batch.real is not None
        expected = expected + embed.positions[places] * batch.real[..., None]
    tiny.close(resid, expected, 1e-12)
    assert [str(site) for site in embed.sites] == ["hook_embed", "hook_pos_embed"][: 1 + learned]


@pytest.mark.parametrize("bias", [True, False])
def test_an_unembedding_of_some_columns_is_those_columns(bias: bool) -> None:
    unembed = Unembedding(6, 11, bias=bias)
    drawn(unembed)
    columns = torch.tensor([7, 0, 7])
    full = X @ unembed.weight.T + (0 if unembed.bias is None else unembed.bias)
    tiny.close(unembed.unembed(X, UNTAPPED, None), full, 1e-12)
    for tap in (OPEN, UNTAPPED):
        tiny.close(unembed.unembed(X, tap, columns), full[..., columns], 1e-12)


def test_sites_know_where_they_are() -> None:
    assert str(AT("attn.hook_z")) == "blocks.0.attn.hook_z"
    assert str(outside_blocks("hook_embed")) == "hook_embed"
    assert RMSNorm(2, 0.1, outside_blocks, "ln_final").sites == tuple(
        map(outside_blocks, ("ln_final.hook_scale", "ln_final.hook_normalized"))
    )
    assert attention(turn=True).sites[3:5] == (AT("attn.hook_rot_q"), AT("attn.hook_rot_k"))


# --- who sees whom ------------------------------------------------------------------------------

cache_of = partial(KeyValueCache, 1, dtype=torch.float32, device=torch.device("cpu"))


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    steps=st.integers(0, 3),
    left=st.booleans(),
    causal=st.booleans(),
)
def test_visibility_is_the_rule(lengths: list[int], steps: int, left: bool, causal: bool) -> None:
    """Brute force: a query sees real keys up to itself, or all of them; a pad sees itself too."""
    batch = tiny.batch([[1] * n for n in lengths], lengths, "left" if left else "right")
    cache = cache_of(len(lengths), batch.tokens.shape[1] + steps, 1, 2)
    check(*visibility(batch, cache, causal=causal), batch, [batch], causal=causal)
    passes = [batch]
    for step in range(steps if left else 0):
        start = batch.lengths + step
        more = Batch(torch.ones(len(lengths), 1, dtype=torch.long), None, start, batch.prompt)
        passes.append(more)
        check(*visibility(more, cache, causal=causal), more, passes, causal=causal)


def check(
    visible: Tensor | None, rule: bool, batch: Batch, passes: list[Batch], *, causal: bool
) -> None:
    """Compares a mask, or the fused kernel's rule, with the meaning."""
    real = torch.cat(
        [torch.ones_like(one.tokens).bool() if one.real is None else one.real for one in passes], 1
    )
    queries, keys = batch.tokens.shape[1], real.shape[1]
    past = keys - queries
    for row in range(len(real)):
        for query in range(queries):
            for key in range(keys):
                sees = bool(real[row, key]) and (not causal or key <= past + query)
                sees |= key == past + query
                if visible is None:
                    got = not rule or key <= query  # is_causal counts from the upper left
                else:
                    got = bool(visible.expand(len(real), 1, queries, keys)[row, 0, query, key])
                assert got == sees, (row, query, key)


# --- windows ------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    steps=st.integers(0, 3),
    left=st.booleans(),
    masked=st.booleans(),
    width=st.integers(1, 8),
)
def test_a_window_counts_content_tokens(
    lengths: list[int], steps: int, left: bool, masked: bool, width: int
) -> None:
    """Brute force: of the keys that a query sees, those less than `width` tokens before it."""
    batch = tiny.batch([[1] * n for n in lengths], lengths, "left" if left else "right")
    size = batch.tokens.shape[1]
    seen = tiny.normal(1, 1, size, size, seed=steps) < 0.5 if masked else None
    batch = Batch(batch.tokens, batch.real, batch.start, batch.prompt, seen=seen)
    cache = cache_of(len(lengths), size + steps, 1, 2)
    near(batch, batch.lengths, cache, width)
    for step in range(steps if not masked else 0):
        start = batch.lengths + step
        more = Batch(torch.ones(len(lengths), 1, dtype=torch.long), None, start, batch.prompt)
        near(more, batch.lengths, cache, width)


def near(batch: Batch, prompts: Tensor, cache: KeyValueCache, width: int) -> None:
    """Compares the view of a window with that of none."""
    whole, windows = views(opened(batch, cache), frozenset({width}), causal=True)
    queries, keys = batch.tokens.shape[1], cache.length
    all_, some = as_mask(whole, len(prompts), queries, keys), windows[width]
    seen = as_mask(some, len(prompts), queries, keys)
    real = cache.reserve(torch.ones(len(prompts), 0, dtype=torch.bool), padded=False)
    for row in range(len(prompts)):
        for query in range(queries):
            place = keys - queries + query
            for key in range(keys):
                between = int(real[row, key + 1 : place + 1].sum())  # tokens after the key
                expected = bool(all_[row, query, key]) and (between < width or key == place)
                assert bool(seen[row, query, key]) == expected, (row, query, key)
    assert some.blind == (batch.seen is not None and not bool(seen.any(-1).all()))
    if width >= keys:
        assert some is whole  # the fused kernel's own rule where that suffices


def as_mask(view: View, rows: int, queries: int, keys: int) -> Tensor:
    """A view as a mask of every row."""
    if view.visible is not None:
        return view.visible.expand(rows, 1, queries, keys)[:, 0]
    seen = torch.ones(rows, queries, keys, dtype=torch.bool)
    return seen.tril() if view.causal else seen


@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize("real", [None, torch.tensor([[True] * 5, [False, False] + [True] * 3])])
def test_windowed_attention_with_sinks_is_its_formula(sinks: bool, real: Tensor | None) -> None:
    made = partial(Attention, 0, 6, 4, 2, 8, AT, scale=0.3, rotary=False, bias=True, out_bias=True)
    attn = made(window=2, sinks=sinks)
    drawn(attn)
    zeros = torch.zeros(2, dtype=torch.long)
    batch = Batch(zeros[:, None].expand(2, 5), real, zeros, zeros + 5)
    whole, windows = views(opened(batch, None), frozenset({2}), causal=True)
    now = Pass(None, *whole[:2], None, windows=windows)
    q, k, v = (part(X).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (attn.q, attn.k, attn.v))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.mT * 0.3).masked_fill(~as_mask(windows[2], 2, 5, 5)[:, None], -torch.inf)
    weights = scores.exp()
    total = weights.sum(-1, keepdim=True)
    if attn.sinks is not None:
        total = total + attn.sinks.exp()[:, None, None]
    expected = attn.o((weights / total @ v).transpose(1, 2).flatten(2))
    for tap in (OPEN, UNTAPPED):
        tiny.close(attn.attend(X, tap, now), expected, 1e-12)
