"""A bias on scores: its formula, and that it means the same however a text is run."""

import pytest
import torch
from einops import einsum
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from workbench.core.cache import KeyValueCache
from workbench.core.data import Batch
from workbench.core.tap import UNTAPPED, Recorder
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import NO_WINDOWS, Columns, Pass, in_block, opened, views
from workbench.models.layers.score_bias import Alibi, CoarseAlibi, ScoreBias, halving_slopes

AT, WIDTH = in_block(0), 6
SLOPES = (0.5, 0.0, 1.25, -0.75)
BIASES: dict[str, ScoreBias] = {"fine": Alibi(SLOPES), "coarse": CoarseAlibi(SLOPES, 0.5)}
biases = pytest.mark.parametrize("name", BIASES)


def attention(groups: int = 2) -> Attention:
    """Four heads with every weight drawn."""
    attn = Attention(0, WIDTH, 4, groups, 8, AT, scale=0.3, rotary=False, bias=True, out_bias=True)
    return tiny.randomised(attn).double().requires_grad_(requires_grad=False)


def stream(batch: Batch, seed: int = 0) -> Tensor:
    """A vector for every token and position, the same wherever it stands."""
    known = tiny.normal(300, WIDTH, seed=seed, dtype=torch.float64)
    return known[batch.tokens] + known[batch.positions + 256]


def now(
    batch: Batch, name: str, cache: KeyValueCache | None = None, *, causal: bool = True
) -> Pass:
    """A pass over a batch with a bias."""
    columns = opened(batch, cache)
    bias = BIASES[name].of(columns.queries, columns.keys, torch.float64)
    view = views(columns, NO_WINDOWS, causal=causal, bias=bias)[0]
    return Pass(None, view.visible, view.causal, cache, view.blind, bias=view.bias)


def whole(ids: list[int]) -> Batch:
    """One text by itself."""
    return tiny.batch([ids], [len(ids)])


def test_halving_slopes_are_those_of_the_paper() -> None:
    assert halving_slopes(8) == tuple(2.0**-k for k in range(1, 9))
    assert halving_slopes(1) == (2.0**-8,)
    below, above = halving_slopes(4), halving_slopes(8)
    assert halving_slopes(6) == (*below, above[0], above[2])
    assert halving_slopes(7) == (*below, above[0], above[2], above[4])


def test_alibi_falls_with_the_distance() -> None:
    at = torch.tensor([[0, 1, 2], [4, 4, 7]])
    bias = Alibi((0.5, 2.0)).of(at, at, torch.float64)
    assert bias.shape == (2, 2, 3, 3)
    assert bias[0, 1].tolist() == [[0, 2, 4], [-2, 0, 2], [-4, -2, 0]]
    assert bias[1, 0, 2].tolist() == [-1.5, -1.5, 0]


def test_coarse_alibi_differs_by_a_number_for_each_query_and_by_rounding() -> None:
    at = torch.arange(9)[None]
    slopes = (0.5, 0.25)  # whose products with small numbers bfloat16 holds
    coarse = CoarseAlibi(slopes, 0.125).of(at, at, torch.float64)
    fine = Alibi(slopes).of(at, at, torch.float64) * 0.125
    tiny.close(coarse.softmax(-1), fine.softmax(-1), 1e-15)
    far = torch.tensor([[1000, 1001]])
    assert CoarseAlibi((1.0,), 1.0).of(far, far, torch.float32).tolist()[0][0] == [[1000, 1000]] * 2


@biases
@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_their_formula_and_the_fused_kernel_says_the_same(
    name: str, causal: bool
) -> None:
    attn, batch = attention(4), tiny.batch([[1, 2, 3, 4, 5]], [5])
    x, at = stream(batch), now(batch, name, causal=causal)
    tap = Recorder((attn.at_scores, attn.at_q, attn.at_k))
    out = attn.attend(x, tap, at)
    kept = tap.recorded()
    q, k = kept[attn.at_q], kept[attn.at_k]
    scores = 0.3 * einsum(q, k, "b query head d, b key head d -> b head query key")
    scores = scores + BIASES[name].of(batch.positions, batch.positions, torch.float64)
    hidden = torch.ones(5, 5).triu(1).bool() & causal
    tiny.close(kept[attn.at_scores], scores.masked_fill(hidden, -torch.inf), 1e-12)
    tiny.close(attn.attend(x, UNTAPPED, at), out, 1e-12)


@biases
@pytest.mark.parametrize("open_", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_on_either_side_changes_nothing(
    name: str, open_: bool, side: str, causal: bool
) -> None:
    attn, tap = attention(), tiny.Spy() if open_ else UNTAPPED
    rows = [[1, 2, 3, 4, 5], [6, 7], [8]]
    batch = tiny.batch(rows, [5, 2, 1], side)
    out = attn.attend(stream(batch), tap, now(batch, name, causal=causal))
    assert batch.real is not None
    for row, ids in enumerate(rows):
        alone = whole(ids)
        expected = attn.attend(stream(alone), tap, now(alone, name, causal=causal))
        tiny.close(out[row][batch.real[row]], expected[0], 1e-12)
    assert bool(out.isfinite().all())


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    chunk=st.integers(1, 6),
    steps=st.integers(0, 3),
    name=st.sampled_from(sorted(BIASES)),
    open_=st.booleans(),
)
def test_chunks_and_steps_in_rows_at_different_positions_equal_one_pass(
    lengths: list[int], chunk: int, steps: int, name: str, open_: bool
) -> None:
    """Of rows padded on the left, in chunks, then step by step, some rows pausing."""
    attn, tap = attention(), tiny.Spy() if open_ else UNTAPPED
    rows = [[16 * row + i for i in range(n + steps)] for row, n in enumerate(lengths)]
    batch = tiny.batch([ids[:n] for ids, n in zip(rows, lengths, strict=True)], lengths, "left")
    width = batch.tokens.shape[1]
    cache = KeyValueCache(
        1, len(rows), width + 2 * steps, 2, 8, dtype=torch.float64, device=torch.device("cpu")
    )
    got: list[list[Tensor]] = [[] for _ in rows]
    for first in range(0, width, chunk):
        part = batch.columns(first, min(first + chunk, width))
        keep(attn.attend(stream(part), tap, now(part, name, cache)), part, got)
    done = list(lengths)
    for step in range(2 * steps):
        going = [
            n < len(ids) and (row + step) % 2 == 0
            for row, (n, ids) in enumerate(zip(done, rows, strict=True))
        ]
        new = torch.tensor([[ids[min(n, len(ids) - 1)]] for n, ids in zip(done, rows, strict=True)])
        real = None if all(going) else torch.tensor(going)[:, None]
        part = Batch(new, real, torch.tensor(done), batch.prompt)
        keep(attn.attend(stream(part), tap, now(part, name, cache)), part, got)
        done = [n + go for n, go in zip(done, going, strict=True)]
    for ids, n, parts in zip(rows, done, got, strict=True):
        one = whole(ids[:n])
        tiny.close(torch.cat(parts), attn.attend(stream(one), tap, now(one, name))[0], 1e-12)


def keep(out: Tensor, batch: Batch, got: list[list[Tensor]]) -> None:
    """Adds the content tokens of each row."""
    for row, parts in enumerate(got):
        parts.append(out[row] if batch.real is None else out[row][batch.real[row]])


@biases
def test_who_sees_nobody_reads_nothing(name: str) -> None:
    attn, ids = attention(), [1, 2, 3, 4]
    seen = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    seen[..., 2, :] = False
    plain = whole(ids)
    batch = Batch(plain.tokens, None, plain.start, plain.prompt, seen=seen)
    at = now(batch, name)
    fused, opened_ = (attn.attend(stream(batch), tap, at) for tap in (UNTAPPED, tiny.Spy()))
    tiny.close(fused, opened_, 1e-12)
    tiny.close(fused[0, 2], attn.o.bias, 1e-12)


def test_positions_of_columns_are_told_by_the_rows_themselves() -> None:
    zeros, none = torch.zeros(2, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long)
    alike = Columns(Batch(none, None, zeros + 4, zeros), 4, None)
    assert alike.keys.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert alike.queries.tolist() == [[4, 5, 6]]
    apart = Columns(Batch(none, None, torch.tensor([2, 5]), zeros), 0, None)
    assert apart.keys.tolist() == apart.queries.tolist() == [[2, 3, 4], [5, 6, 7]]
    real = torch.tensor([[False, True, True, True, True], [True, True, False, True, True]])
    gaps = Columns(Batch(none, real[:, 2:], torch.tensor([1, 2]), zeros), 2, real)
    assert gaps.keys.tolist() == [[0, 0, 1, 2, 3], [0, 1, 1, 2, 3]]
