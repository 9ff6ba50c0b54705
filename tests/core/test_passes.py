"""Every operator and scope means the same in one pass or many, padded, batched and permuted.

The reference is one uncached forward over a row's finished text by itself, of which its prompt is a
part (teacher forcing). All other ways must give the same logits at *every* content position;
`test_invariance.py` does the same through `generate`, for the positions that choose a token.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.data import Batch
from workbench.core.ledger import Ledger
from workbench.core.plan import as_plan
from workbench.core.program import compile_plan
from workbench.core.protocols import new_cache

pytestmark = pytest.mark.usefixtures("unchecked")
TOLERANCE = 1e-5  # float32, kernels of other shapes
ROWS = [tiny.tokens(length, seed=length).tolist() for length in (9, 6, 8)]
PROMPTS = (5, 2, 8)
D = 24

OPERATORS: dict[str, Any] = {
    "zero": wb.ops.zero(),
    "set": wb.ops.set(tiny.normal(D, seed=1)),
    "set by position": wb.ops.set(tiny.normal(9, D, seed=2)),
    "mean": wb.ops.mean(tiny.normal(D, seed=3)),
    "add": wb.ops.add(tiny.normal(D, seed=4)),
    "scale": wb.ops.scale(-0.5),
    "project_out": wb.ops.project_out(tiny.normal(2, D, seed=5), center=tiny.normal(D, seed=6)),
    "function": wb.ops.function(lambda x: x + torch.tanh(x)),
}
SCOPES: dict[str, Any] = {
    "all": None,
    "prompt": "prompt",
    "generated": "generated",
    "predicting": "predicting",
    "first": 0,
    "end of the prompt": -1,
    "some": [0, 3, -2],
    "window": slice(1, 4),
    "window from the end": slice(-2, None),
    "after a start": slice(2, None),
}
# Not a scale, which the norm after `hook_mlp_in` would undo.
BEND = OPERATORS["function"]
SITES = (
    "hook_embed",
    "blocks.0.ln1.hook_normalized",
    "blocks.1.ln1.hook_scale",
    "blocks.0.attn.hook_q",
    "blocks.1.attn.hook_k",
    "blocks.1.attn.hook_v",
    "blocks.1.attn.hook_attn_scores",
    "blocks.1.attn.hook_pattern",
    "blocks.1.attn.hook_z",
    "blocks.0.attn.hook_result",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_resid_mid",
    "blocks.1.hook_mlp_in",
    "blocks.1.mlp.hook_pre",
    "blocks.2.mlp.hook_post",
    "blocks.2.hook_mlp_out",
    "blocks.0.hook_resid_post",
    "ln_final.hook_normalized",
    "hook_unembed",
)
kinds = pytest.mark.parametrize("kind", tiny.KINDS)


def rows_of(logits: Tensor, batch: Batch) -> list[Tensor]:
    """Each row's logits at its content positions."""
    real = torch.ones_like(batch.tokens).bool() if batch.real is None else batch.real
    return [logits[row][real[row]] for row in range(len(logits))]


def alone(model: wb.Model, plan: Sequence[wb.Intervention]) -> list[Tensor]:
    """The reference: each row's uncached forward by itself."""
    texts = zip(ROWS, PROMPTS, strict=True)
    return [wb.run(model, tiny.batch([ids], [p]), plan=plan).logits[0] for ids, p in texts]


def chunked(
    model: wb.Model, plan: Sequence[wb.Intervention], row: int, sizes: Sequence[int]
) -> Tensor:
    """One row's logits by passes of these sizes over a cache."""
    ids, prompt = ROWS[row], torch.tensor([PROMPTS[row]])
    cache = new_cache(model, 1, len(ids))
    program, parts, start = compile_plan(as_plan(plan), model, 1), [], 0
    for size in sizes:
        part = torch.tensor([ids[start : start + size]])
        batch = Batch(part, None, torch.tensor([start]), prompt)
        tap = program.tap(batch, Ledger(program.plan))
        with torch.no_grad():
            resid = model.layers(model.embed(batch, tap), batch, tap, cache=cache)
            parts.append(model.unembed(resid, tap)[0])
        start += size
    assert start == len(ids)
    return torch.cat(parts)


def threes(length: int) -> list[int]:
    """Chunks of three."""
    return [3] * (length // 3) + ([length % 3] if length % 3 else [])


def every_way(model: wb.Model, plan: list[wb.Intervention]) -> None:
    """Compares all ways of running with the reference."""
    expected = alone(model, plan)
    for side, order in (("left", [0, 1, 2]), ("left", [2, 0, 1]), ("right", [1, 2, 0])):
        batch = tiny.batch([ROWS[i] for i in order], [PROMPTS[i] for i in order], side)
        trace = wb.run(model, batch, plan=plan)
        for i, logits in zip(order, rows_of(trace.logits, batch), strict=True):
            tiny.close(logits, expected[i], TOLERANCE)
    for row, (ids, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True)):
        rest = len(ids) - prompt
        ways = ([prompt] + [1] * rest, [1] * len(ids), threes(len(ids)), [prompt - 1, 1, rest])
        for sizes in ways:
            logits = chunked(model, plan, row, [size for size in sizes if size])
            tiny.close(logits, expected[row], TOLERANCE)


def maybe(site: str, operator: Any, **options: Any) -> wb.Intervention:
    """An intervention that may find nothing to do in a row by itself."""
    return wb.Intervention(site, operator, optional=True, **options)


@kinds
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("scope", SCOPES)
def test_every_operator_and_scope(kind: str, operator: str, scope: str) -> None:
    plan = [maybe("blocks.1.hook_resid_post", OPERATORS[operator], positions=SCOPES[scope])]
    every_way(tiny.model(kind), plan)


@kinds
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("scope", ["generated", "some"])
def test_every_kind_of_site(kind: str, site: str, scope: str) -> None:
    every_way(tiny.model(kind), [maybe(site, BEND, positions=SCOPES[scope])])


@kinds
def test_the_plans_above_change_something(kind: str) -> None:
    model = tiny.model(kind)
    plain = alone(model, [])[0]
    plans = [maybe(site, BEND) for site in SITES]
    plans += [maybe("blocks.1.hook_resid_post", operator) for operator in OPERATORS.values()]
    for one in plans:
        assert not torch.allclose(alone(model, [one])[0], plain, atol=1e-3), str(one)


@kinds
def test_heads_and_neurons(kind: str) -> None:
    rot = "rot_" if kind == "llama" else ""
    plan = [
        maybe("blocks.0.attn.hook_z", wb.ops.zero(), heads=[1], positions="generated"),
        maybe(f"blocks.1.attn.hook_{rot}k", wb.ops.scale(2.0), heads=[0]),
        maybe("blocks.2.mlp.hook_post", wb.ops.add(torch.ones(40)), neurons=[3, 30]),
        maybe("blocks.2.attn.hook_pattern", wb.ops.scale(0.5), heads=[0], positions=[-1]),
    ]
    every_way(tiny.model(kind), plan)


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_have_plans_of_their_own(kind: str, side: str) -> None:
    model, site = tiny.model(kind), "blocks.1.hook_resid_post"
    each = [
        maybe(site, OPERATORS["add"], positions="generated"),
        maybe(site, OPERATORS["project_out"]),
        maybe(site, OPERATORS["set by position"], positions=slice(-2, None)),
    ]
    expected = [alone(model, [one])[row] for row, one in enumerate(each)]
    mixed = [one.on_rows([row]) for row, one in enumerate(each)]
    trace = wb.run(model, tiny.batch(ROWS, PROMPTS, side), plan=mixed)
    for logits, own in zip(rows_of(trace.logits, trace.batch), expected, strict=True):
        tiny.close(logits, own, TOLERANCE)


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_row_without_a_change_is_bit_exact_with_no_plan(
    kind: str, side: str, operator: str
) -> None:
    model, batch = tiny.model(kind), tiny.batch(ROWS, PROMPTS, side)
    plain = wb.run(model, batch).logits
    plan = [maybe("blocks.1.hook_resid_post", OPERATORS[operator], rows=[1])]
    logits = wb.run(model, batch, plan=plan).logits
    assert tiny.same_bytes(logits[[0, 2]], plain[[0, 2]])
    assert not torch.equal(logits[1], plain[1])
