"""What an intervention changes, and the bytes it leaves alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import (
    EmptySelectionError,
    NeverActedError,
    OptionError,
    ShapeError,
    UnknownNameError,
)
from workbench.core.sites import Site

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
IDS = tiny.tokens(3, 6)
POST, Z = "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"
D = 24


def operators(width: int) -> dict[str, Any]:
    """Every operator there is, for activations of a width."""
    return {
        "zero": wb.ops.zero(),
        "set": wb.ops.set(tiny.normal(width, seed=1)),
        "mean": wb.ops.mean(tiny.normal(width, seed=2)),
        "add": wb.ops.add(tiny.normal(width, seed=3)),
        "scale": wb.ops.scale(-2.0),
        "project_out": wb.ops.project_out(tiny.normal(2, width, seed=4)),
        "function": wb.ops.function(torch.cos),
    }


NAMES = tuple(operators(D))
# Where an intervention may act, and the mask of (row, pos) or of (head, neuron) that it touches.
PLACES: dict[str, tuple[dict[str, Any], Any]] = {
    "everywhere": ({}, lambda row, pos: True),
    "a position": ({"positions": 2}, lambda row, pos: pos == 2),
    "from the end": ({"positions": [-1, 0]}, lambda row, pos: pos in (0, 5)),
    "a slice": ({"positions": slice(1, -1)}, lambda row, pos: 1 <= pos < 5),
    "the prompt": ({"positions": "prompt"}, lambda row, pos: True),
    "what predicts": ({"positions": "predicting"}, lambda row, pos: pos == 5),
    "a row": ({"rows": [1]}, lambda row, pos: row == 1),
    "rows and positions": ({"rows": [2, 0], "positions": 3}, lambda r, p: r != 1 and p == 3),
}


def planted(value: Tensor) -> Tensor:
    """The activation with zeros that are negative, which a careless `+ 0` turns positive."""
    value = value.clone()
    value[..., ::3] = -0.0
    return value


PLANT = wb.Intervention(POST, planted)


@kinds
@pytest.mark.parametrize("operator", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_selected_keeps_its_bytes(kind: str, operator: str, place: str) -> None:
    model, (options, touches) = tiny.model(kind), PLACES[place]
    cut = wb.Intervention(POST, operators(D)[operator], **options)
    before = wb.run(model, IDS, plan=[PLANT], record=[POST])[POST]
    trace = wb.run(model, IDS, plan=[PLANT, cut], record=[POST])
    touched = torch.tensor([[touches(row, pos) for pos in range(6)] for row in range(3)])
    assert tiny.same_bytes(trace[POST][~touched], before[~touched])
    expected = operators(D)[operator](before, Site.parse(POST), trace.batch.place, 1.0)
    tiny.close(trace[POST][touched], expected[touched], 1e-6)
    receipt = trace.receipts[1]
    assert (receipt.acted, receipt.tokens) == (1, int(touched.sum()))
    moved = float((trace[POST] - before).norm())
    assert receipt.change == pytest.approx(moved, rel=1e-5)
    assert receipt.change > 0


@kinds
@pytest.mark.parametrize("operator", [name for name in NAMES if name != "project_out"])
@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"heads": [1]}, (slice(None), slice(None), [1])),
        ({"heads": [2, 0], "rows": [1]}, ([[1]], slice(None), [[0, 2]])),
        ({"neurons": [3, 5]}, (..., [3, 5])),
        ({"heads": [0], "neurons": [7], "positions": 2}, (slice(None), 2, 0, 7)),
    ],
    ids=str,
)
def test_heads_and_neurons_that_are_not_selected_keep_their_bytes(
    kind: str, operator: str, options: dict[str, Any], where: Any
) -> None:
    model = tiny.model(kind)
    plant = wb.Intervention(Z, planted)
    cut = wb.Intervention(Z, operators(8)[operator], **options)
    before = wb.run(model, IDS, plan=[plant], record=[Z])[Z]
    after = wb.run(model, IDS, plan=[plant, cut], record=[Z])[Z]
    touched = torch.zeros_like(before, dtype=torch.bool)
    if "rows" in options:
        touched[1][:, [0, 2]] = True
    else:
        touched[where] = True
    assert tiny.same_bytes(after[~touched], before[~touched])
    site, place = Site.parse(Z), wb.run(model, IDS).batch.place
    expected = operators(8)[operator](before, site, place, 1.0)
    tiny.close(after[touched], expected[touched], 1e-6)


@kinds
def test_pads_are_never_touched(kind: str) -> None:
    model, rows = tiny.model(kind), [[1, 2, 3, 4], [5, 6]]
    for side in ("left", "right"):
        trace = wb.run(
            model,
            rows,
            padding_side=side,
            plan=[wb.Intervention(POST, wb.ops.set(torch.full((D,), 7.0)))],
            record=[POST],
        )
        assert trace.batch.real is not None
        assert bool((trace[POST][trace.batch.real] == 7).all())
        assert bool((trace[POST][~trace.batch.real] != 7).all())
        assert trace.receipts[0].tokens == 6


# --- strength -----------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("operator", NAMES)
def test_strength_zero_is_no_plan_bit_for_bit(kind: str, operator: str) -> None:
    model = tiny.model(kind)
    for site in (POST, "blocks.*.hook_resid_pre", "hook_embed"):
        still = wb.Intervention(site, operators(D)[operator], strength=0.0)
        trace = wb.run(model, IDS, plan=[still])
        assert tiny.same_bytes(trace.logits, wb.run(model, IDS).logits)
        receipt = trace.receipts[0]
        assert (receipt.acted, receipt.tokens, receipt.change) == (0, 0, 0.0)
    still = wb.Intervention(POST, operators(D)[operator], unit_size=0.0)
    assert tiny.same_bytes(wb.run(model, IDS, plan=[still]).logits, wb.run(model, IDS).logits)


@kinds
def test_strengths_at_one_site_add_up(kind: str) -> None:
    model, vector = tiny.model(kind, torch.float64), tiny.normal(D, dtype=torch.float64)

    def push(*strengths: float) -> Tensor:
        plan = [wb.Intervention(POST, wb.ops.add(vector), strength=s) for s in strengths]
        return wb.run(model, IDS, plan=plan).logits

    tiny.close(push(0.7, -1.9), push(-1.2))


# --- order --------------------------------------------------------------------------------------


@kinds
def test_interventions_at_a_site_act_in_the_order_of_the_plan(kind: str) -> None:
    model = tiny.model(kind)
    double, push = wb.ops.scale(2.0), wb.ops.add(torch.ones(D))
    one, other = wb.Intervention(POST, double), wb.Intervention(POST, push)
    plain = wb.run(model, IDS, record=[POST])[POST]
    first = wb.run(model, IDS, plan=[one, other], record=[POST])[POST]
    second = wb.run(model, IDS, plan=[other, one], record=[POST])[POST]
    assert torch.equal(first, 2 * plain + 1)
    assert torch.equal(second, 2 * (plain + 1))


@kinds
def test_sites_act_in_the_order_of_the_forward(kind: str) -> None:
    model = tiny.model(kind)
    early = wb.Intervention("blocks.0.hook_resid_post", wb.ops.scale(3.0))
    late = wb.Intervention(POST, wb.ops.add(torch.ones(D)))
    one = wb.run(model, IDS, plan=[early, late])
    other = wb.run(model, IDS, plan=[late, early])
    assert tiny.same_bytes(one.logits, other.logits)
    assert [r.intervention for r in one.receipts] == [str(early), str(late)]
    assert [r.intervention for r in other.receipts] == [str(late), str(early)]


@kinds
def test_one_intervention_may_act_at_many_sites(kind: str) -> None:
    cut = wb.Intervention("blocks.*.hook_mlp_out", wb.ops.zero())
    three = [wb.Intervention(f"blocks.{layer}.hook_mlp_out", wb.ops.zero()) for layer in range(3)]
    one, many = (wb.run(tiny.model(kind), IDS, plan=plan) for plan in ([cut], three))
    assert tiny.same_bytes(one.logits, many.logits)
    assert (one.receipts[0].acted, one.receipts[0].tokens) == (3, 3 * 18)


# --- receipts -----------------------------------------------------------------------------------


@kinds
def test_a_masked_score_that_stays_masked_has_not_changed(kind: str) -> None:
    site = "blocks.1.attn.hook_attn_scores"
    model = tiny.model(kind)
    scores = wb.run(model, IDS, record=[site])[site]
    trace = wb.run(model, IDS, plan=[wb.Intervention(site, wb.ops.scale(2.0))])
    visible = scores[scores.isfinite()]
    assert trace.receipts[0].change == pytest.approx(float(visible.norm()), rel=1e-4)
    plus = wb.run(model, IDS, plan=[wb.Intervention(site, wb.ops.add(torch.tensor(1.0)))])
    tiny.close(plus.logits, wb.run(model, IDS).logits, 1e-5)  # softmax does not see it
    assert plus.receipts[0].change == pytest.approx(len(visible) ** 0.5, rel=1e-4)


def test_a_large_change_in_half_precision_has_a_size() -> None:
    model = tiny.model("llama", torch.float16)
    push = wb.Intervention(POST, wb.ops.add(torch.full((D,), 300.0)))
    change = wb.run(model, IDS, plan=[push]).receipts[0].change
    assert change == pytest.approx(300 * (D * 18) ** 0.5, rel=1e-2)


def test_a_plan_with_a_function_cannot_be_replayed() -> None:
    assert wb.run(tiny.model(), IDS, plan=[wb.Intervention(POST, wb.ops.zero())]).replayable
    assert not wb.run(tiny.model(), IDS, plan=[wb.Intervention(POST, torch.sin)]).replayable


# --- what cannot act ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "generated"}, r"plan\[0\], zero at .*, never acted: its scope selects no"),
        (
            {"positions": slice(6, None)},
            "its scope selects no token. Mark it optional",
        ),
        ({"positions": slice(0, 0)}, "never acted"),
        ({"positions": slice(None, -6)}, "never acted"),
    ],
)
def test_what_never_acts_raises_unless_it_may(options: dict[str, Any], message: str) -> None:
    cut = wb.Intervention(POST, wb.ops.zero(), **options)
    with pytest.raises(NeverActedError, match=message):
        wb.run(tiny.model(), IDS, plan=[cut])
    allowed = wb.Intervention(POST, wb.ops.zero(), optional=True, **options)
    trace = wb.run(tiny.model(), IDS, plan=[allowed])
    assert tiny.same_bytes(trace.logits, wb.run(tiny.model(), IDS).logits)
    assert trace.receipts[0].acted == 0


@pytest.mark.parametrize("positions", [6, [0, 6], -7, [-1, -7, 9]])
def test_positions_that_no_row_has_are_named(positions: Any) -> None:
    cut = wb.Intervention(POST, wb.ops.zero(), positions=positions)
    beyond = [
        p for p in (positions if isinstance(positions, list) else [positions]) if p > 5 or p < -6
    ]
    with pytest.raises(EmptySelectionError) as caught:
        wb.run(tiny.model(), IDS, plan=[cut])
    assert f"positions {beyond} are beyond the 6 tokens of the run" in str(caught.value)


def test_a_position_that_some_row_has_is_enough() -> None:
    rows = [[1, 2, 3], [4]]
    trace = wb.run(tiny.model(), rows, plan=[wb.Intervention(POST, wb.ops.zero(), positions=2)])
    assert trace.receipts[0].tokens == 1


@pytest.mark.parametrize(
    ("site", "options", "message"),
    [
        (Z, {"heads": [9]}, r"heads at blocks\.1\.attn\.hook_z must be below 4, got \(9,\)"),
        ("blocks.1.attn.hook_k", {"heads": [2]}, "must be below 2"),
        (POST, {"heads": [0]}, "must be left out: its axes are .*pos"),
        (POST, {"neurons": [24]}, r"neurons at blocks\.1\.hook_resid_post must be below 24"),
        ("blocks.1.attn.hook_pattern", {"neurons": [0]}, "left out: its axes are batch head query"),
        (POST, {"keys": [0]}, r"keys at blocks\.1\.hook_resid_post must be left out: its axes are"),
        ("blocks.1.ln1.hook_scale", {"neurons": [0]}, "left out: its axes are batch pos 1"),
        (POST, {"rows": [0, 3]}, r"plan\[0\]\.rows must be below the 3 rows of the run"),
    ],
)
def test_indices_that_do_not_exist_are_refused(
    site: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        wb.run(tiny.model(), IDS, plan=[wb.Intervention(site, wb.ops.zero(), **options)])


@pytest.mark.parametrize(
    ("operand", "message"),
    [
        (torch.ones(23), r"expected a tensor that fits \(3, 6, 24\) \(batch pos d_model\), got"),
        (torch.ones(5, D), "expected an operand of 6 positions or more, got 5"),
        (torch.ones(2, 6, D), r"got \(2, 6, 24\)"),
        (torch.ones(1, 1, 1, D), "expected at most 3 axes, got 4"),
    ],
    ids=["width", "positions", "rows", "axes"],
)
def test_operands_that_do_not_fit_are_refused(operand: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        wb.run(tiny.model(), IDS, plan=[wb.Intervention(POST, wb.ops.set(operand))])


def test_an_operand_needs_only_the_positions_it_is_read_at() -> None:
    operand = tiny.normal(3, D)
    cut = wb.Intervention(POST, wb.ops.set(operand), positions=[0, 2])
    value = wb.run(tiny.model(), IDS, plan=[cut], record=[POST])[POST]
    assert torch.equal(value[:, [0, 2]], operand[[0, 2]].expand(3, 2, D))


def test_a_glob_that_fits_nothing_is_an_error_before_anything_runs() -> None:
    spy = tiny.Spy()
    with pytest.raises(UnknownNameError, match=r"'blocks\.\*\.attn\.hook_y'"):
        wb.run(
            tiny.model(),
            IDS,
            plan=[wb.Intervention("blocks.*.attn.hook_y", wb.ops.zero())],
            tap=spy,
        )
    assert spy.fired == []


def test_attention_can_be_patched_from_another_run_under_right_padding() -> None:
    model, site = tiny.model(), "blocks.1.attn.hook_pattern"
    donor = wb.run(model, [[9, 8, 7, 6], [5, 4]], record=[site])
    patch = wb.Intervention(site, wb.ops.set(donor[site]))
    trace = wb.run(model, [[1, 2, 3, 4], [5, 6]], plan=[patch], record=[site])
    assert donor.batch.real is not None
    for row, length in ((0, 4), (1, 2)):
        one, other = trace[site][row, :, :length], donor[site][row, :, :length]
        assert tiny.same_bytes(one, other)
    with pytest.raises(ShapeError, match="no pads on the left"):
        wb.run(model, [[1, 2, 3, 4], [5, 6]], padding_side="left", plan=[patch])


@pytest.mark.parametrize("side", ["left", "right"])
def test_keys_are_the_positions_a_query_looks_at_under_padding_on_either_side(side: Any) -> None:
    model, site, rows = tiny.model(), "blocks.1.attn.hook_pattern", [[1, 2, 3, 4, 5], [6, 7, 8]]
    cut = wb.Intervention(site, wb.ops.zero(), heads=[1], positions=[2, -1], keys=[0, 2])
    together = wb.run(model, rows, plan=[cut], record=[site], padding_side=side)
    for row, ids in enumerate(rows):
        alone = wb.run(model, [ids], plan=[cut], record=[site])
        before = wb.run(model, [ids], record=[site])[site][0]
        expected = before.clone()
        expected[1, [2, len(ids) - 1], 0] = 0
        expected[1, [2, len(ids) - 1], 2] = 0
        assert tiny.same_bytes(alone[site][0], expected)
        first = 5 - len(ids) if side == "left" else 0
        content = slice(first, first + len(ids))
        tiny.close(together[site][row, :, content, content], expected, 1e-6)


def test_keys_mean_the_same_with_a_cache_and_without() -> None:
    model, site = tiny.model(), "blocks.*.attn.hook_attn_scores"
    hide = wb.Intervention(site, wb.ops.set(torch.tensor(float("-inf"))), keys=[1, 6])
    made = [
        wb.generate(model, [[1, 2, 3, 4], [5, 6]], plan=[hide], max_new_tokens=8, use_cache=cached)
        for cached in (True, False)
    ]
    assert made[0].tokens == made[1].tokens
    free = wb.generate(model, [[1, 2, 3, 4], [5, 6]], max_new_tokens=8)
    assert made[0].log_probabilities != free.log_probabilities


def test_a_key_that_no_text_has_is_an_error() -> None:
    cut = wb.Intervention("blocks.1.attn.hook_pattern", wb.ops.zero(), keys=[6])
    with pytest.raises(EmptySelectionError, match=r"positions \[6\] are beyond the 6 tokens"):
        wb.run(tiny.model(), IDS, plan=[cut])


@pytest.mark.parametrize(
    "options", [{"neurons": [24]}, {"positions": 9}, {"keys": [0]}, {"heads": [0]}]
)
def test_strength_0_hides_no_place_that_is_not_there(options: dict[str, Any]) -> None:
    cut = wb.Intervention(POST, wb.ops.zero(), strength=0.0, **options)
    with pytest.raises((OptionError, EmptySelectionError)):
        wb.run(tiny.model(), IDS, plan=[cut])
