"""Rows of one generation with plans, samplers and limits of their own, and what they leave."""

from typing import Any

import pytest
import torch

import workbench as wb
from tests import instances, tiny
from workbench.core.errors import CancelledError, NotRecordedError, OptionError

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
PROMPTS = ["abcdef", "xy", "mno"]
POST = "blocks.*.hook_resid_post"


def push(seed: int, **options: Any) -> wb.Intervention:
    return wb.Intervention(POST, wb.ops.add(tiny.normal(24, seed=seed)), **options)


@kinds
def test_a_row_with_its_own_plan_is_as_if_alone(kind: str) -> None:
    model = tiny.model(kind)
    cut = wb.Intervention("blocks.1.attn.hook_z", wb.ops.zero(), heads=[0])
    plans = [[push(1), cut], [], [push(2, positions="generated"), push(3)]]
    made = wb.generate(model, PROMPTS, plans=plans, max_new_tokens=7)
    for row, prompt in enumerate(PROMPTS):
        alone = wb.generate(model, prompt, plan=plans[row], max_new_tokens=7)
        assert alone.tokens[0] == made.tokens[row]
        assert alone.log_probabilities[0] == pytest.approx(made.log_probabilities[row], abs=1e-5)
    assert [one.rows for one in made.plan] == [(0,), (2,), (0,), (2,)]
    turned = wb.generate(model, PROMPTS[::-1], plans=plans[::-1], max_new_tokens=7)
    assert turned.tokens == made.tokens[::-1]


@kinds
@pytest.mark.parametrize("prompt", ["ab", "the quick brown fox"], ids=["short", "shared"])
def test_a_row_without_a_plan_keeps_its_bytes(kind: str, prompt: str) -> None:
    model = tiny.model(kind)
    options: Any = {"max_new_tokens": 6, "record": POST}
    plain = wb.generate(model, [prompt] * 3, **options)
    made = wb.generate(model, [prompt] * 3, plans=[[push(1)], (), [push(2)]], **options)
    assert made.log_probabilities[1] == plain.log_probabilities[1]
    assert made.log_probabilities[0] != plain.log_probabilities[0]
    for site in plain.activations:
        assert tiny.same_bytes(made[site][1], plain[site][1])


def test_what_holds_for_all_rows_acts_before_what_holds_for_one() -> None:
    model, half = tiny.model(), wb.Intervention(POST, wb.ops.scale(0.5))
    both = wb.generate(model, PROMPTS[:1], plan=[half], plans=[[push(1)]], max_new_tokens=5)
    one = wb.generate(model, PROMPTS[0], plan=[half, push(1)], max_new_tokens=5)
    assert both.log_probabilities == one.log_probabilities


def test_plans_that_do_not_fit_are_refused() -> None:
    model: Any = tiny.model()
    with pytest.raises(OptionError, match=r"plans must be 3 plans, one per row"):
        wb.generate(model, PROMPTS, plans=[[], []])
    with pytest.raises(OptionError, match=r"plans\[1\]\[0\]\.rows must be left out"):
        wb.generate(model, PROMPTS, plans=[[], [push(1, rows=[0])], []])
    with pytest.raises(OptionError, match="prefill_chunk must be left out with use_cache=False"):
        wb.generate(model, "a", prefill_chunk=2, use_cache=False)
    with pytest.raises(OptionError, match="prefill_chunk must be 1 or more"):
        wb.generate(model, "a", prefill_chunk=0)
    for name, two in (
        ("temperature", [1.0, 1.0]),
        ("top_k", [1, 1]),
        ("top_p", [1.0, 1.0]),
        ("max_new_tokens", [1, 1]),
    ):
        options: dict[str, Any] = {name: two}
        with pytest.raises(OptionError, match=f"{name} must be one value, or 3, one per row"):
            wb.generate(model, PROMPTS, **options)


@kinds
def test_samplers_and_limits_may_differ_by_row(kind: str) -> None:
    model = tiny.model(kind)
    each: Any = {
        "temperature": [0.0, 1.5, 0.7],
        "top_k": [None, 20, None],
        "top_p": [None, None, 0.8],
        "max_new_tokens": [3, 8, 5],
        "seed": [1, 2, 3],
        "stop": [[], ["e"], ["a", "o"]],
    }
    made = wb.generate(model, PROMPTS, **each)
    for row, prompt in enumerate(PROMPTS):
        own: Any = {name: values[row] for name, values in each.items()}
        alone = wb.generate(model, prompt, **own)
        assert made.tokens[row] == alone.tokens[0]
        assert made.texts[row] == alone.texts[0]
        assert made.finish[row] == alone.finish[0]


@kinds
@pytest.mark.parametrize("way", [{}, {"use_cache": False}, {"prefill_chunk": 2}], ids=str)
def test_captured_activations_are_those_of_the_finished_text(kind: str, way: Any) -> None:
    model = tiny.model(kind)
    sites = ["hook_embed", POST, "blocks.1.attn.hook_z", "ln_final.hook_normalized"]
    plans = [[push(1, positions="generated")], [push(2)], ()]
    options: Any = {"max_new_tokens": [3, 5, 4], "record": sites, **way}
    made = wb.generate(model, PROMPTS, plans=plans, **options)
    for row, plan in enumerate(plans):
        whole = made.prompt[row] + made.tokens[row]
        batch = tiny.batch([whole], [len(made.prompt[row])])
        trace = wb.run(model, batch, plan=plan, record=sites)
        assert set(made.activations) == set(trace)
        for site, value in trace.items():
            assert made[site][row].shape == value[0].shape
            tiny.close(made[site][row], value[0], 2e-5)
    plain = wb.generate(model, PROMPTS, plans=plans, max_new_tokens=[3, 5, 4], **way)
    assert plain.tokens == made.tokens
    with pytest.raises(NotRecordedError, match="pass it in record="):
        _ = plain["hook_embed"]


def test_a_shared_beginning_is_run_once_for_rows_that_are_alike_there() -> None:
    text = "the quick brown fox"
    calls: list[str] = []

    def count() -> None:
        calls.append("")

    def cost(**options: Any) -> int:
        calls.clear()
        wb.generate(tiny.model(), [text] * 4, max_new_tokens=1, check=count, **options)
        return len(calls)

    later, now = push(1, positions="predicting"), push(2)
    once = cost()
    assert cost(share_prefix=False) < once  # one pass less, of more tokens
    assert cost(plans=[[later], [], [], [later]]) == once  # nobody acts in the beginning
    assert cost(plans=[[now], [], [], []]) > once  # two kinds of rows
    assert cost(plans=[[now], [], [now], []]) == cost(plans=[[now], [], [], []])
    assert cost(prefill_chunk=6) > once


@pytest.mark.parametrize("at", [5, 70, 200])
def test_a_check_may_cancel_in_a_shared_beginning_a_chunk_or_a_step(at: int) -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == at:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        wb.generate(tiny.model(), ["a" * 20] * 2, max_new_tokens=9, prefill_chunk=8, check=check)
    assert len(calls) == at


def test_streams_of_rows_with_plans_are_the_generation() -> None:
    options: Any = {"plans": [[push(1)], []], "max_new_tokens": [2, 4]}
    pieces = list(wb.generate(tiny.model(), PROMPTS[:2], stream=True, **options))
    whole = wb.generate(tiny.model(), PROMPTS[:2], **options)
    for row in range(2):
        assert tuple(p.token for p in pieces if p.row == row) == whole.tokens[row]


@kinds
def test_negative_zero_survives_where_nothing_is_added(kind: str) -> None:
    model, site = tiny.model(kind), "blocks.0.hook_resid_post"
    plant = wb.Intervention(site, wb.ops.set(torch.full((24,), -0.0)))
    more = [plant, wb.Intervention(site, wb.ops.add(tiny.normal(24)), rows=[1])]
    steered = wb.run(model, ["abc", "abc"], plan=more, record=site)[site]
    assert bool(torch.signbit(steered[0]).all())


@pytest.mark.usefixtures("unchecked")
@kinds
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "alike"])
def test_rows_of_as_many_kinds_as_there_are_may_share_a_batch(kind: str, shared: bool) -> None:
    """Operators, scopes, schedules and gates, a kind for each of 32 rows; every fourth has none."""
    model, makers = tiny.model(kind), list(instances.operators(24).values())
    scopes = list(instances.scopes().values())
    timed = [None, *instances.SCHEDULES.values()]
    gates = [None, *instances.GATES.values()]
    plans: list[Any] = [
        []
        if row % 4 == 3
        else [
            wb.Intervention(
                "blocks.1.hook_resid_post",
                makers[(row + more) % len(makers)],
                positions=scopes[(5 * row + more) % len(scopes)],
                schedule=timed[(row + more) % len(timed)],
                gate=gates[(row + 2 * more) % len(gates)],
                strength=1.5,
                optional=True,
            )
            for more in range(2)
        ]
        for row in range(32)
    ]
    begin = "the same beginning " if shared else ""
    prompts = [begin + "abcdefgh"[row % 5 : row % 5 + 1 + row % 4] for row in range(32)]
    options: Any = {"temperature": 0.7, "max_new_tokens": 5}
    made = wb.generate(model, prompts, plans=plans, seed=list(range(32)), **options)
    assert sum(receipt.tokens > 0 for receipt in made.receipts) > 20  # of 48
    for row, plan in enumerate(plans):
        alone = wb.generate(model, prompts[row], plan=plan, seed=row, **options)
        assert alone.tokens[0] == made.tokens[row]
        assert alone.log_probabilities[0] == pytest.approx(made.log_probabilities[row], abs=1e-5)
    plain = wb.generate(model, prompts, seed=list(range(32)), **options)
    for row in range(3, 32, 4):
        assert made.log_probabilities[row] == plain.log_probabilities[row]  # to the bit


@kinds
def test_a_row_beside_a_gated_one_keeps_its_negative_zeros(kind: str) -> None:
    model, site = tiny.model(kind), "blocks.0.hook_resid_post"
    gate = wb.gates.sigmoid(tiny.normal(24, seed=4), site="hook_embed")
    plan = [
        wb.Intervention(site, wb.ops.set(torch.full((24,), -0.0))),
        wb.Intervention(site, wb.ops.add(tiny.normal(24)), rows=[1], gate=gate),
    ]
    made = wb.run(model, ["abc", "abc"], plan=plan, record=site)[site]
    assert bool(torch.signbit(made[0]).all())
    assert not bool(torch.signbit(made[1]).all())
