"""Gates let a change through where an activation says so, each row and token by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import (
    FormatError,
    NeverActedError,
    OptionError,
    ShapeError,
    UnknownNameError,
)
from workbench.core.gates import Gate, gate_from_json
from workbench.core.sites import Site

pytestmark = pytest.mark.usefixtures("unchecked")
kinds = pytest.mark.parametrize("kind", tiny.KINDS)
PRE, POST = "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"
HEADS, SCORES = "blocks.1.attn.hook_z", "blocks.1.attn.hook_attn_scores"
ROWS = [[*b"abcdefgh"], [*b"xyzxy"], [*b"mnop"]]
ENDS = [5, 3, 4]
VECTOR = tiny.normal(24, seed=21)
LAST = "blocks.2.hook_resid_post"
CONTRAST = wb.Contrast(
    clean=["abcab", "the cat sat on"],
    corrupt=["xbcxb", "the dog sat on"],
    target=["c", " "],
    foil=["d", "x"],
)


def scores(kind: str, site: str, side: str = "right", vector: Tensor = VECTOR) -> list[Tensor]:
    """vᵀh at each token of each row."""
    value = wb.run(tiny.model(kind), tiny.batch(ROWS, ENDS, side), record=site)[site].flatten(2)
    found = value.double() @ vector.double()
    at = [len(row) for row in ROWS]
    return [one[-n:] if side == "left" else one[:n] for one, n in zip(found, at, strict=True)]


def middle(kind: str, site: str) -> float:
    """A threshold with a few tokens below it, more above, and none near it."""
    found = torch.cat(scores(kind, site)).sort().values
    return float(found[3:5].mean())  # of 17


def opened(found: list[Tensor], threshold: float, hold: str) -> list[list[int]]:
    """Where a gate is open, by a plain reading of what it is."""
    places: list[list[int]] = []
    for row, end in zip(found, ENDS, strict=False):
        here = [i for i, score in enumerate(row.tolist()) if score > threshold]
        if hold == "prompt":
            here = list(range(end - 1, len(row))) if end - 1 in here else []
        if hold == "while":
            here = here[: next((i for i, pos in enumerate(here) if pos != i), len(here))]
        places.append(here)
    return places


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("hold", ["token", "prompt", "while"])
@pytest.mark.parametrize("site", [None, PRE, "hook_embed", POST])
@pytest.mark.parametrize("operator", [wb.ops.add(tiny.normal(24, seed=3)), wb.ops.zero()], ids=str)
def test_a_gate_is_the_positions_at_which_it_is_open(
    kind: str, side: str, hold: Any, site: Any, operator: Any
) -> None:
    model, read = tiny.model(kind), POST if site is None else site
    threshold = middle(kind, read)
    gate = wb.gates.above(VECTOR, threshold, site=site, hold=hold)
    where = opened(scores(kind, read), threshold, hold)
    batch = tiny.batch(ROWS, ENDS, side)
    made = wb.run(model, batch, plan=[wb.Intervention(POST, operator, gate=gate)])
    named = [
        wb.Intervention(POST, operator, positions=at, rows=[row])
        for row, at in enumerate(where)
        if at
    ]
    assert len(named) > 0
    expected = wb.run(model, batch, plan=named)
    for row, ids in enumerate(ROWS):
        at = slice(-len(ids), None) if side == "left" else slice(len(ids))
        tiny.close(made.logits[row, at], expected.logits[row, at], 1e-5)
    assert made.receipts[0].tokens == sum(map(len, where))
    change = sum(one.change**2 for one in expected.receipts) ** 0.5
    assert made.receipts[0].change == pytest.approx(change, rel=1e-5)


@kinds
def test_a_token_at_which_a_gate_is_shut_keeps_its_bytes(kind: str) -> None:
    model, batch = tiny.model(kind), tiny.batch(ROWS, ENDS)
    threshold = middle(kind, POST)
    plan = [wb.Intervention(POST, wb.ops.scale(3.0), gate=wb.gates.above(VECTOR, threshold))]
    made, plain = (wb.run(model, batch, plan=p, record=POST)[POST] for p in (plan, []))
    for row, places in enumerate(opened(scores(kind, POST), threshold, "token")):
        for pos in range(len(ROWS[row])):
            same = tiny.same_bytes(made[row, pos], plain[row, pos])
            assert same == (pos not in places)


@kinds
def test_below_is_open_where_above_is_shut(kind: str) -> None:
    model, batch, threshold = tiny.model(kind), tiny.batch(ROWS, ENDS), middle(kind, PRE)
    both = [
        wb.Intervention(POST, wb.ops.zero(), gate=gate(VECTOR, threshold, site=PRE))
        for gate in (wb.gates.above, wb.gates.below)
    ]
    made = wb.run(model, batch, plan=both, record=POST)
    assert made.receipts[0].tokens + made.receipts[1].tokens == sum(map(len, ROWS))
    real = batch.real
    assert real is not None
    assert not made[POST][real].any()


@kinds
@pytest.mark.parametrize("hold", ["token", "prompt"])
def test_a_sigmoid_lets_through_as_much_as_it_says(kind: str, hold: Any) -> None:
    model, batch = tiny.model(kind), tiny.batch(ROWS, ENDS)
    gate = wb.gates.sigmoid(VECTOR / 4, 0.5, site=PRE, hold=hold)
    half = wb.schedules.piecewise([(0, 0.5)], prompt_value=1.0)
    plan = [wb.Intervention(POST, wb.ops.scale(2.0), gate=gate, schedule=half)]
    plain = wb.run(model, batch, record=POST)[POST]
    made = wb.run(model, batch, plan=plan, record=POST)[POST]
    for row, score in enumerate(scores(kind, PRE, vector=VECTOR / 4)):
        weights = (score + 0.5).sigmoid()
        if hold == "prompt":
            kept = weights[ENDS[row] - 1].expand(len(weights)).clone()
            kept[: ENDS[row] - 1] = 0
            weights = kept
        weights[ENDS[row] :] *= 0.5
        n = len(ROWS[row])
        tiny.close(made[row, :n], plain[row, :n] * (1 + weights.float())[:, None], 1e-4)


@kinds
def test_gates_of_several_sites_read_each_its_own_or_one_for_all(kind: str) -> None:
    model, batch = tiny.model(kind), tiny.batch(ROWS, ENDS)
    sites = [POST, "blocks.2.hook_resid_post"]
    threshold = middle(kind, POST)
    for hold in ("token", "while", "prompt"):
        hows: dict[str, Any] = {"hold": hold}
        shared = wb.gates.above(VECTOR, threshold, site=POST, **hows)
        once = [wb.Intervention(sites, wb.ops.scale(2.0), gate=shared)]
        # What is read for the later site has been changed already, so it is what decides there.
        apart = [
            wb.Intervention(
                sites[0], wb.ops.scale(2.0), gate=wb.gates.above(VECTOR, threshold, **hows)
            ),
            wb.Intervention(sites[1], wb.ops.scale(2.0), gate=shared),
        ]
        one, two = wb.run(model, batch, plan=once), wb.run(model, batch, plan=apart)
        assert tiny.same_bytes(one.logits, two.logits)
        assert one.receipts[0].tokens == sum(receipt.tokens for receipt in two.receipts)
    own = wb.gates.above(VECTOR, threshold)
    one = wb.run(model, batch, plan=[wb.Intervention(sites, wb.ops.scale(2.0), gate=own)])
    two = wb.run(
        model, batch, plan=[wb.Intervention(s, wb.ops.scale(2.0), gate=own) for s in sites]
    )
    assert tiny.same_bytes(one.logits, two.logits)


@kinds
@pytest.mark.parametrize("site", [HEADS, SCORES])
def test_heads_and_queries_have_the_gates_of_their_tokens(kind: str, site: str) -> None:
    model, threshold = tiny.model(kind), middle(kind, PRE)
    batch = tiny.batch([ROWS[0]], ENDS[:1])
    gate = wb.gates.above(VECTOR, threshold, site=PRE)
    where = opened(scores(kind, PRE)[:1], threshold, "token")[0]
    gated = [wb.Intervention(site, wb.ops.scale(0.5), gate=gate, heads=[1])]
    named = [wb.Intervention(site, wb.ops.scale(0.5), positions=where, heads=[1])]
    one, two = wb.run(model, batch, plan=gated), wb.run(model, batch, plan=named)
    tiny.close(one.logits, two.logits, 1e-5)
    assert one.receipts[0].tokens == two.receipts[0].tokens


@kinds
def test_a_gate_reads_all_heads_of_a_site_as_a_direction_has_them(kind: str) -> None:
    model = tiny.model(kind)
    n = model.sizes.n_heads * model.sizes.d_head
    vector = tiny.normal(n, seed=8)
    value = wb.run(model, tiny.batch(ROWS, ENDS), record=HEADS)[HEADS].flatten(2).double()
    found = (value @ vector.double())[0]
    where = [i for i, score in enumerate(found.tolist()) if score > 0]
    plan = [wb.Intervention(POST, wb.ops.zero(), gate=wb.gates.above(vector, 0.0, site=HEADS))]
    made = wb.run(model, tiny.batch(ROWS[:1], ENDS[:1]), plan=plan, record=POST)[POST][0]
    assert [i for i, one in enumerate(made) if not one.any()] == where


def test_a_gate_reads_what_the_plan_left_of_its_site() -> None:
    model, batch = tiny.model(), tiny.batch(ROWS, ENDS)
    flat = wb.Intervention(PRE, wb.ops.zero())
    shut = wb.Intervention(POST, wb.ops.zero(), gate=wb.gates.above(VECTOR, 1e-9, site=PRE))
    with pytest.raises(NeverActedError, match=r"never acted: .* or its gate was shut"):
        wb.run(model, batch, plan=[flat, shut])
    wb.run(
        model,
        batch,
        plan=[
            flat,
            wb.Intervention(POST, wb.ops.zero(), gate=wb.gates.below(VECTOR, 1e-9, site=PRE)),
        ],
    )


# --- while generating ---------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("way", [{}, {"use_cache": False}, {"prefill_chunk": 2}], ids=str)
def test_the_prompt_s_verdict_holds_for_what_is_generated(kind: str, way: Any) -> None:
    model, prompts = tiny.model(kind), ["abcdef", "xy", "mno"]
    last = [
        float(wb.run(model, p, record=PRE)[PRE][0, -1].double() @ VECTOR.double()) for p in prompts
    ]
    threshold = sum(sorted(last)[:2]) / 2
    gate = wb.gates.above(VECTOR, threshold, site=PRE, hold="prompt")
    push = wb.Intervention(POST, wb.ops.add(3 * tiny.normal(24)), positions="generated", gate=gate)
    always = wb.Intervention(POST, wb.ops.add(3 * tiny.normal(24)), positions="generated")
    made = wb.generate(model, prompts, plan=[push], max_new_tokens=6, **way)
    for row, prompt in enumerate(prompts):
        plan = [always] if last[row] > threshold else []
        alone = wb.generate(model, prompt, plan=plan, max_new_tokens=6)
        assert made.tokens[row] == alone.tokens[0]
        assert made.log_probabilities[row] == pytest.approx(alone.log_probabilities[0], abs=1e-5)


# --- runs that do less --------------------------------------------------------------------------


@kinds
def test_a_trace_of_everything_is_recorded_as_the_run_goes(kind: str) -> None:
    model, batch = tiny.model(kind), tiny.batch(ROWS, ENDS)
    gate = wb.gates.above(VECTOR, middle(kind, PRE), site=PRE)
    plan = [wb.Intervention("blocks.2.hook_resid_post", wb.ops.scale(2.0), gate=gate)]
    lazy = wb.run(model, batch, plan=plan, record="all")
    eager = wb.run(model, batch, plan=plan, record="*")
    for site, value in eager.items():
        assert tiny.same_bytes(lazy[site], value)


def test_a_start_after_the_gate_s_site_is_refused() -> None:
    model, batch = tiny.model(), tiny.batch(ROWS[:1], ENDS[:1])
    given = wb.run(model, batch, record=POST)[POST]
    gate = wb.gates.above(VECTOR, 0.0, site=PRE)
    plan = [wb.Intervention("blocks.2.hook_resid_post", wb.ops.zero(), gate=gate)]
    with pytest.raises(OptionError, match=r"plan\[0\]\.gate must be read where the run passes"):
        wb.run(model, batch, plan=plan, start=(2, given))


@kinds
def test_a_sweep_of_gated_cells_is_a_run_of_each(kind: str) -> None:
    model, threshold = tiny.model(kind), middle(kind, PRE)
    metric, prompts = wb.metrics.logit_difference(CONTRAST), CONTRAST.clean

    def double(threshold: float, hold: Any = "token") -> wb.Intervention:
        gate = wb.gates.above(VECTOR, threshold, site=PRE, hold=hold)
        return wb.Intervention(LAST, wb.ops.scale(2.0), gate=gate, optional=True)

    holds: list[Any] = ["token", "while", "prompt"]
    cells = [double(t, hold) for t in (threshold, threshold - 1.0) for hold in holds]
    cells += [wb.Intervention(LAST, wb.ops.zero(), positions=at) for at in (0, 3, -1)]
    for fixed in ([], [double(threshold - 0.5)]):
        swept = wb.sweep(model, prompts, cells, metric, plan=fixed, verify=0)
        for cell, values in zip(cells, swept.changed, strict=True):
            expected = metric(wb.run(model, prompts, plan=[*fixed, cell]))
            tiny.close(values, expected, 1e-5)


def test_a_gradient_goes_through_a_gate_that_slopes() -> None:
    model, metric = tiny.model("llama", torch.float64), wb.metrics.logit_difference(CONTRAST)
    gate = wb.gates.sigmoid(VECTOR.double(), site=PRE)
    plan = [wb.Intervention(POST, wb.ops.scale(2.0), gate=gate)]
    slopes = wb.gradients(model, CONTRAST.clean, PRE, metric, plan=plan)
    slope = slopes[Site.parse(PRE)][:, 2]
    step = 1e-6 * tiny.normal(24, dtype=torch.float64)
    moved = [
        metric(
            wb.run(
                model,
                CONTRAST.clean,
                plan=[wb.Intervention(PRE, wb.ops.add(side * step), positions=2), *plan],
            )
        )
        for side in (1, -1)
    ]
    torch.testing.assert_close((moved[0] - moved[1]) / 2, slope @ step, rtol=1e-5, atol=0)


# --- as data ------------------------------------------------------------------------------------


def test_a_plan_keeps_its_gates(tmp_path: Path) -> None:
    gates = [
        wb.gates.above(VECTOR, 0.25),
        wb.gates.below(VECTOR, -1.5, site=PRE, hold="while"),
        wb.gates.sigmoid(VECTOR, 0.5, site="hook_embed", hold="prompt"),
    ]
    plan = wb.Plan(
        tuple(wb.Intervention(POST, wb.ops.zero(), gate=g, optional=True) for g in gates)
    )
    plan.save(tmp_path / "one")
    again = wb.Plan.load(tmp_path / "one")
    for one, other in zip(plan, again, strict=True):
        assert isinstance(one.gate, Gate)
        assert isinstance(other.gate, Gate)
        assert tiny.same_bytes(one.gate.vector, other.gate.vector)
        assert one.gate.to_json() == other.gate.to_json()
        assert str(one) == str(other)
    again.save(tmp_path / "two")
    for name in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    (tmp_path / "one" / "plan.safetensors").unlink()
    with pytest.raises(FormatError, match=r"plan\[0\]: the tensors \['gate'\] are not in"):
        wb.Plan.load(tmp_path / "one")


def test_a_gate_owns_its_vector() -> None:
    vector = VECTOR.clone()
    gate = wb.gates.above(vector, 1.0)
    vector.zero_()
    assert torch.equal(gate.vector, VECTOR)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "above",
        {},
        {"site": None, "bias": 0.0, "shape": "step"},
        {"site": None, "bias": "0", "shape": "step", "hold": "token"},
        {"site": "nowhere", "bias": 0.0, "shape": "step", "hold": "token"},
        {"site": 3, "bias": 0.0, "shape": "step", "hold": "token"},
        {"site": None, "bias": 0.0, "shape": "ramp", "hold": "token"},
        {"site": None, "bias": 0.0, "shape": "step", "hold": ["token"]},
        {"site": None, "bias": 0.0, "shape": "sigmoid", "hold": "while"},
        {"site": SCORES, "bias": 0.0, "shape": "step", "hold": "token"},
        {"site": None, "bias": 0.0, "shape": "step", "hold": "token", "more": 1},
    ],
    ids=str,
)
def test_what_is_no_gate_is_a_format_error(data: object) -> None:
    with pytest.raises(FormatError):
        gate_from_json(data, VECTOR)


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "keys": (
        lambda: wb.gates.above(VECTOR, 0.0, site=SCORES),
        OptionError,
        "one activation, not batch",
    ),
    "no vector": (lambda: wb.gates.above(torch.ones(2, 2), 0.0), ShapeError, r"a vector \(d\)"),
    "nowhere": (
        lambda: wb.gates.above(VECTOR, 0.0, site="nowhere"),
        UnknownNameError,
        "No site named",
    ),
    "soft while": (lambda: Gate(VECTOR, 0.0, None, "sigmoid", "while"), OptionError, "never shut"),
    "infinite": (lambda: wb.gates.above(VECTOR, float("inf")), OptionError, "finite number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_gate_is_refused(name: str) -> None:
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("gate", "error", "message"),
    [
        (
            wb.gates.above(VECTOR, 0.0, site="blocks.2.hook_resid_pre"),
            OptionError,
            r"plan\[0\]\.gate must be read at blocks\.1\.hook_resid_post or before",
        ),
        (
            wb.gates.above(VECTOR, 0.0, site="blocks.9.hook_resid_pre"),
            UnknownNameError,
            "No site named",
        ),
        (wb.gates.above(torch.ones(7), 0.0), ShapeError, "a vector of 24, got 7"),
    ],
    ids=["later", "nowhere", "of another width"],
)
def test_a_gate_that_cannot_be_read_is_refused(gate: Gate, error: Any, message: str) -> None:
    plan = [wb.Intervention(POST, wb.ops.zero(), gate=gate)]
    with pytest.raises(error, match=message):
        wb.run(tiny.model(), "abc", plan=plan)


def test_a_gate_may_be_that_of_several_interventions(tmp_path: Path) -> None:
    gate = wb.gates.above(VECTOR, 0.25)
    plan = wb.Plan((wb.Intervention(POST, wb.ops.zero(), gate=gate, optional=True),) * 2)
    again = wb.Plan.load(plan.save(tmp_path))
    for one in again:
        assert one.gate is not None
        assert tiny.same_bytes(one.gate.vector, VECTOR)


@kinds
def test_a_gate_is_not_read_where_tokens_have_keys(kind: str) -> None:
    model = tiny.model(kind)
    gate = wb.gates.above(torch.ones(16), 0.5)
    cut = wb.Intervention("blocks.1.attn.hook_pattern", wb.ops.zero(), gate=gate)
    with pytest.raises(OptionError, match=r"plan\[0\].gate.*by site=.*hook_pattern"):
        wb.run(model, "abcd", plan=[cut])
