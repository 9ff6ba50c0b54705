"""Encoder–decoder models through the engine: the same calls, positions in the stack of a site."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.two_stacks import Texts, hf
from workbench.core.data import Batch, batch_of
from workbench.core.errors import (
    AlignmentError,
    EmptySelectionError,
    NeverActedError,
    NotRecordedError,
    OptionError,
    ShapeError,
    UnknownNameError,
)
from workbench.core.gates import above
from workbench.core.generate import Generation
from workbench.core.sites import Site
from workbench.core.tap import UNTAPPED

pytestmark = pytest.mark.usefixtures("unchecked")
MODEL = wb.load(hf("t5"), tokenizer=tiny.Bytes(), dtype=torch.float64)
SOURCE, TARGET = Texts.sources, Texts.targets
VECTOR = torch.linspace(-1, 1, 24, dtype=torch.float64)
MEMORY, SCORES = Site("hook_encoder_out"), "decoder.1.cross_attn.hook_attn_scores"
PLAN = [  # at every kind of place there is
    wb.Intervention("hook_embed", wb.ops.add(VECTOR), positions=[1]),
    wb.Intervention("decoder.hook_embed", wb.ops.scale(0.8), positions=[0]),
    wb.Intervention("encoder.1.hook_resid_mid", wb.ops.add(VECTOR), positions=[0, 2]),
    wb.Intervention("encoder.0.attn.hook_pattern", wb.ops.zero(), keys=[1], heads=[0]),
    wb.Intervention("encoder_final_ln.hook_normalized", wb.ops.scale(0.9), positions=[3]),
    wb.Intervention("hook_encoder_out", wb.ops.scale(1.1)),
    wb.Intervention("decoder.0.hook_resid_post", wb.ops.add(VECTOR), positions=-1),
    wb.Intervention("decoder.1.cross_attn.hook_k", wb.ops.scale(0.5), positions=[1]),
    wb.Intervention("decoder.1.attn.hook_z", wb.ops.zero(), heads=[1], positions="generated"),
]
KEYED = wb.Intervention("decoder.2.cross_attn.hook_pattern", wb.ops.zero(), keys=[2, 0])
PLAIN, WHOLE = [one.on_rows(range(3), optional=True) for one in PLAN], [*PLAN[:-1], KEYED]


def batch(**options: Any) -> Batch:
    return batch_of(MODEL, SOURCE, target=TARGET, **options)


def metric(logits: Tensor) -> Tensor:
    return logits[:, 5] - logits[:, 7]


def finite(value: Tensor) -> Tensor:
    return value.nan_to_num(neginf=-9.0)


@pytest.mark.parametrize("plan", [[], WHOLE], ids=["no plan", "a plan"])
def test_a_trace_of_everything_replays_either_stack(plan: list[Any]) -> None:
    eager = wb.run(MODEL, batch(), plan=plan, record="*")
    lazy = wb.run(MODEL, batch(), plan=plan, record="all")
    assert lazy.replay is not None
    assert len(lazy.activations) < len(lazy)
    assert MEMORY in lazy.activations
    for site in MODEL.sites:
        tiny.close(finite(lazy[site]), finite(eager[site]), 1e-10)
    assert [one.acted for one in lazy.receipts] == [one.acted for one in eager.receipts]


@pytest.mark.parametrize("first", range(6))
def test_a_run_starts_at_any_layer_of_either_stack(first: int) -> None:
    given = batch()
    stream = MODEL.layers(MODEL.embed(given, UNTAPPED), given, UNTAPPED, last=first)
    plan = [one for one in WHOLE if first <= 2 and "decoder.1" in one.sites[0]]
    started = wb.run(MODEL, given, start=(first, stream), plan=plan, record="all")
    whole = wb.run(MODEL, given, plan=plan, record="*")
    tiny.close(started.logits, whole.logits)
    for site in started:
        tiny.close(finite(started[site]), finite(whole[site]))
    with pytest.raises(ShapeError, match="the residual stream"):
        wb.run(MODEL, given, start=(first, stream[:, :-1]))


def test_a_run_ends_where_nothing_more_is_needed() -> None:
    spy = tiny.Spy(lambda site: False)
    wb.run(MODEL, batch(), record="encoder.0.hook_resid_post", logits=False, tap=spy)
    assert {site.layer for site in spy.sites} == {None, 0}
    assert all(site.stack in ("", "encoder") for site in spy.sites)
    spy = tiny.Spy(lambda site: False)
    wb.run(MODEL, batch(), record="decoder.0.cross_attn.hook_q", logits=False, tap=spy)
    assert max(site.layer or 0 for site in spy.sites if site.stack == "decoder") == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_within_the_stack_of_a_site(side: str) -> None:
    vector = wb.ops.add(VECTOR)
    given, rows = batch(padding_side=side), range(3)
    for site in ("encoder.0.hook_resid_pre", "decoder.1.hook_resid_pre"):
        texts = SOURCE if site.startswith("encoder") else TARGET
        change = wb.Intervention(site, vector, positions=[2], optional=True)
        trace = wb.run(MODEL, given, plan=[change], record=site)
        moved = (trace[site] - wb.run(MODEL, given, record=site)[site]).abs().sum(-1) > 1e-9
        for row in rows:
            pads = moved.shape[1] - len(texts[row]) if side == "left" else 0
            expected = [pads + 2] if len(texts[row]) > 2 else []
            assert moved[row].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_keys_across_count_in_the_source(side: str) -> None:
    plan = [wb.Intervention(SCORES, wb.ops.set(torch.tensor(7.0)), keys=[3], positions=[0])]
    site = Site.parse(SCORES)
    trace = wb.run(MODEL, batch(padding_side=side), plan=plan, record=site)
    for row, (ids, given) in enumerate(zip(SOURCE, TARGET, strict=True)):
        found = (trace[site][row, 0] == 7.0).nonzero().tolist()  # query key
        left = side == "left"
        query, key = max(map(len, TARGET)) - len(given), max(map(len, SOURCE)) - len(ids)
        assert found == ([[query * left, key * left + 3]] if len(ids) > 3 else [])


def zeroed(site: str, **where: Any) -> Any:
    return wb.run(MODEL, batch(), plan=[wb.Intervention(site, wb.ops.zero(), **where)])


def test_what_names_no_position_of_its_stack_is_refused() -> None:
    with pytest.raises(EmptySelectionError, match="beyond the 6 tokens"):
        zeroed("decoder.0.hook_mlp_out", positions=7)
    zeroed("encoder.0.hook_mlp_out", positions=7)
    with pytest.raises(NeverActedError):
        zeroed("encoder.0.hook_mlp_out", positions="generated")
    with pytest.raises(EmptySelectionError, match="beyond"):
        zeroed(SCORES, keys=[9])
    zeroed(SCORES, keys=[8])


def test_patching_the_memory_is_patching_the_source() -> None:
    """All that a decoder knows of a source is its memory."""
    other = [tuple(tiny.tokens(len(ids), seed=9).tolist()) for ids in SOURCE]
    donor = wb.run(MODEL, other, target=TARGET, record=MEMORY)
    patch = wb.Intervention(MEMORY, wb.ops.set(donor[MEMORY]))
    patched = wb.run(MODEL, batch(), plan=[patch])
    tiny.close(patched.logits, donor.logits)


@pytest.mark.parametrize("site", ["encoder.0.hook_resid_pre", "decoder.1.hook_resid_post"])
def test_gradients_are_the_slopes_of_the_run(site: str) -> None:
    [slope] = wb.gradients(MODEL, batch(), site, metric, plan=WHOLE).values()
    step = tiny.normal(*slope.shape, dtype=torch.float64)

    def at(size: float) -> Tensor:
        moved = wb.Intervention(site, lambda x: x + size * step)
        return metric(wb.run(MODEL, batch(), plan=[*WHOLE, moved]).answer_logits)

    measured = (at(1e-6) - at(-1e-6)) / 2e-6
    expected = (slope * step).flatten(1).sum(1)
    assert expected.abs().max() > 1e-2
    tiny.close(measured, expected, 1e-8)


def test_jacobians_cross_from_the_encoder_to_the_decoder() -> None:
    early, late = "encoder.1.hook_resid_pre", Site.parse("decoder.1.hook_resid_post")
    stream = wb.run(MODEL, batch(), record=[early, str(late)])
    tangent = tiny.normal(*stream[early].shape, dtype=torch.float64)
    cotangent = tiny.normal(*stream[late].shape, seed=1, dtype=torch.float64)
    pushed = wb.jvp(MODEL, batch(), {early: tangent}, late)[late]
    [pulled] = wb.vjp(MODEL, batch(), early, {late: cotangent}).values()
    assert (pushed * cotangent).sum().abs() > 1e-3
    tiny.close((pushed * cotangent).sum(), (pulled * tangent).sum(), 1e-9)


WAYS: dict[str, dict[str, Any]] = {
    "cached": {},
    "chunks of 1": {"prefill_chunk": 1},
    "chunks of 2": {"prefill_chunk": 2},
    "nothing shared": {"share_prefix": False},
}


def write(plan: list[Any], rows: Sequence[int] = (0, 1, 2), **options: Any) -> Generation:
    texts, given = [SOURCE[row] for row in rows], [TARGET[row] for row in rows]
    return wb.generate(MODEL, texts, target=given, plan=plan, max_new_tokens=5, **options)


def same(one: Generation, other: Generation) -> None:
    assert one.tokens == other.tokens
    for mine, theirs in zip(one.log_probabilities, other.log_probabilities, strict=True):
        tiny.close(torch.tensor(mine), torch.tensor(theirs), 1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plan", [[], [*PLAN, KEYED]], ids=["no plan", "a plan"])
def test_a_text_is_the_same_however_it_is_made(plan: list[Any], way: str) -> None:
    same(write(plan, **WAYS[way]), write(plan, use_cache=False))


@pytest.mark.parametrize("row", range(3))
def test_a_row_is_the_same_alone(row: int) -> None:
    plan = [one.on_rows(range(3), optional=True) for one in [*PLAN, KEYED]]
    alone = [one.on_rows([0]) for one in plan]
    together, own = write(plan), write(alone, [row])
    assert together.tokens[row] == own.tokens[0]
    said = torch.tensor([together.log_probabilities[row], own.log_probabilities[0]])
    tiny.close(said[0], said[1], 1e-9)


def test_a_steered_text_is_another() -> None:
    for one in PLAN:
        site = one.sites[0]
        strong = wb.Intervention(site, wb.ops.scale(-6.0))
        steered, plain = write([strong]), write([])
        assert steered.log_probabilities != plain.log_probabilities, site


def test_rows_of_one_generation_have_plans_of_their_own() -> None:
    plans = [[PLAN[2]], [], [wb.Intervention("decoder.1.hook_resid_post", wb.ops.add(VECTOR))]]
    plans[0] = [wb.Intervention("encoder.1.hook_resid_mid", wb.ops.add(VECTOR))]
    together = wb.generate(MODEL, SOURCE, target=TARGET, plans=plans, max_new_tokens=5)
    for row, plan in enumerate(plans):
        assert together.tokens[row] == write(plan, [row]).tokens[0]


def test_what_made_a_text_is_what_a_run_over_it_has() -> None:
    made = write(WHOLE, record="*")
    again = write(WHOLE, record="*", use_cache=False)
    for site in MODEL.sites:
        for mine, theirs in zip(made[site], again[site], strict=True):
            tiny.close(finite(mine), finite(theirs), 1e-9)
    for row, ids in enumerate(SOURCE):
        length = len(TARGET[row]) + 5
        assert made[MEMORY][row].shape == (len(ids), 24)
        assert made["decoder.0.hook_resid_pre"][row].shape == (length, 24)
        assert made[SCORES][row].shape == (4, length, len(ids))


def test_keys_of_the_source_are_made_once() -> None:
    made: list[Site] = []

    def seen(value: Tensor) -> Tensor:
        made.append(Site.parse("decoder.0.cross_attn.hook_k"))
        return value

    write([wb.Intervention("decoder.0.cross_attn.hook_k", seen)])
    assert len(made) == 1


def cells() -> list[Any]:
    """Cells at every site, of single positions and of all, and some of both stacks at once."""
    sites = [str(site) for site in MODEL.sites]
    first = [wb.Intervention(site, wb.ops.scale(0.5), positions=[0]) for site in sites]
    last = [wb.Intervention(site, wb.ops.scale(0.5), positions=-1) for site in sites]
    z = ("encoder.1.attn.hook_z", "decoder.0.attn.hook_z", "decoder.2.cross_attn.hook_z")
    heads = [wb.Intervention(site, wb.ops.zero(), heads=[head]) for site in z for head in (0, 3)]
    return [*first, *last, *heads, [heads[0], heads[5]], [KEYED, heads[1]], [KEYED]]


@pytest.mark.parametrize("max_tokens", [60, 100_000])
@pytest.mark.parametrize("fixed", [[], PLAN[2:3] + PLAN[5:8]], ids=["no plan", "a plan"])
def test_a_sweep_equals_one_run_per_cell(fixed: list[Any], max_tokens: int) -> None:
    swept = cells()
    plans = [[cell] if isinstance(cell, wb.Intervention) else cell for cell in swept]
    found = wb.sweep(MODEL, batch(), swept, metric, plan=fixed, max_tokens=max_tokens)
    runs = [wb.run(MODEL, batch(), plan=[*fixed, *plan]).answer_logits for plan in plans]
    tiny.close(found.changed, torch.stack([metric(logits) for logits in runs]), 1e-10)
    assert found.effects.abs().max() > 1e-2


def test_a_cell_of_the_decoder_runs_no_token_of_the_source() -> None:
    given, site = batch(), "decoder.1.hook_resid_pre"
    last = wb.Intervention(site, wb.ops.scale(0.5), positions=[5], optional=True)
    found = wb.sweep(MODEL, given, [last], metric, verify=0)
    assert found.tokens == 3  # the last column of three rows
    early = wb.Intervention("encoder.1.hook_resid_pre", wb.ops.scale(0.5), positions=[8])
    early = early.on_rows(range(3), optional=True)
    assert wb.sweep(MODEL, given, [early], metric, verify=0).tokens == 3 * given.width


def test_a_grid_patches_across_the_stacks() -> None:
    clean, corrupt = "the cat sat", "the dog sat"
    for site, key in (
        ("encoder.*.hook_resid_pre", "pos"),
        ("decoder.*.hook_resid_pre", "pos"),
        ("decoder.*.cross_attn.hook_pattern", "key"),
        ("decoder.*.cross_attn.hook_v", "pos"),
    ):
        grid = wb.Grid(site, over=("layer", key))
        found = wb.sweep(MODEL, clean, grid, metric, source=corrupt, target="on")
        n_layers = 2 if site.startswith("encoder") else 3
        width = 3 if site.startswith("decoder.*.hook") else len(clean)
        assert found.changed.shape == (n_layers, width, 1)
        donor = wb.run(MODEL, corrupt, target="on", record=site)
        chosen = [one for one in MODEL.sites if one in donor]
        for layer, one in enumerate(chosen):
            for place in range(width):
                where: Any = {"keys" if key == "key" else "positions": [place]}
                patch = wb.Intervention(str(one), wb.ops.set(donor[one]), **where)
                by_hand = metric(wb.run(MODEL, clean, target="on", plan=[patch]).answer_logits)
                tiny.close(found.changed[layer, place], by_hand, 1e-10)
        labels = next(axis.labels for axis in found.axes if axis.name == key)
        assert labels[-1] == (clean[-1] if width > 3 else "n")
    with pytest.raises(AlignmentError):
        wb.sweep(MODEL, clean, wb.Grid("hook_embed", over="pos"), metric, source="the do")


def test_a_target_begins_with_the_start_token() -> None:
    start = MODEL.sizes.start_id
    assert batch_of(MODEL, "abc").tokens.tolist() == [[start]]
    assert batch_of(MODEL, "abc", target="de").tokens.tolist() == [[start, 100, 101]]
    assert batch_of(MODEL, ["a", "b"], target="d").tokens.tolist() == [[start, 100]] * 2
    assert batch_of(MODEL, "abc", target=[[7, 8]]).tokens.tolist() == [[7, 8]]
    with pytest.raises(AlignmentError, match="3 prompts need 1 or 3 targets, got 2"):
        batch_of(MODEL, ["a", "b", "c"], target=["d", "e"])


def test_what_two_stacks_cannot_do_is_refused() -> None:
    decoder = tiny.model("gpt2")
    square = torch.ones(3, 1, 9, 9, dtype=torch.bool)
    gate = above(VECTOR, 0.0, site="encoder.0.hook_resid_post")
    gated = wb.Intervention("decoder.0.hook_resid_post", wb.ops.zero(), gate=gate)
    refused: list[tuple[str, Any]] = [
        ("target", lambda: wb.run(decoder, "abc", target="d")),
        ("prompt", lambda: wb.run(MODEL, batch_of(decoder, "abc"))),
        ("prompt", lambda: wb.run(decoder, batch())),
        ("attention_mask", lambda: batch(attention_mask=square)),
        ("max_tokens", lambda: wb.run(MODEL, batch(), max_tokens=10)),
        ("gate", lambda: wb.run(MODEL, batch(), plan=[gated])),
        ("model", MODEL.folded),
        ("target", lambda: wb.run(MODEL, batch(), target="d")),
        ("batch", lambda: MODEL.embed(batch_of(decoder, "abc"), UNTAPPED)),
    ]
    for what, call in refused:
        with pytest.raises(OptionError, match=what):
            call()
    with pytest.raises(UnknownNameError):
        wb.run(MODEL, batch(), record="blocks.0.hook_resid_pre")
    stream = MODEL.layers(MODEL.embed(batch(), UNTAPPED), batch(), UNTAPPED, last=3)
    with pytest.raises(NotRecordedError):
        wb.run(MODEL, batch(), start=(3, stream), record="encoder.1.hook_resid_pre")


def test_threads_write_and_read_at_once() -> None:
    def work(k: int) -> bool:
        if k % 2:
            return write([PLAN[2 + k % 4]]).tokens == expected[k % 4]
        return torch.equal(wb.run(MODEL, batch(), plan=WHOLE).logits, logits)

    logits = wb.run(MODEL, batch(), plan=WHOLE).logits
    expected = {k % 4: write([PLAN[2 + k % 4]]).tokens for k in (1, 3)}
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(24)))
