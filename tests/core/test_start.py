"""Runs that do less: a true start at a block, a true end, and only the logits asked for."""

from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.core.counting import Counting
from workbench.core.errors import (
    NeverActedError,
    NonFiniteError,
    NotRecordedError,
    OptionError,
    ShapeError,
)

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10]]
PLAN = [wb.Intervention("blocks.2.hook_mlp_out", wb.ops.scale(0.5), rows=1)]


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_run_from_a_given_stream_is_the_rest_of_the_full_run(
    kind: str, side: Any, layer: int
) -> None:
    model = Counting(tiny.model(kind))
    plan = PLAN if layer < 3 else []
    full = wb.run(model, ROWS, plan=plan, record="all", padding_side=side)
    name = f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
    whole, stream = dict(full.items()), full[name]
    model.forget()
    with tiny.unchecked():  # beartype looks into a mapping it is given
        rest = wb.run(
            model, ROWS, plan=plan, record="all", padding_side=side, start=(layer, stream)
        )
    assert (model.blocks, model.embedded) == ([0, 1, 2][layer:], 0)
    assert tiny.same_bytes(rest.logits, full.logits)
    assert rest.receipts == full.receipts
    assert all(site.layer is None or site.layer >= layer for site in rest)
    assert list(rest) == list(full)[-len(rest) :]
    for site, value in rest.items():
        assert tiny.same_bytes(value, whole[site])


@kinds
def test_a_plan_at_the_first_block_acts_once(kind: str) -> None:
    model, double = tiny.model(kind), wb.Intervention("blocks.1.hook_resid_pre", wb.ops.scale(2.0))
    stream = wb.run(model, ROWS, record="blocks.0.hook_resid_post")["blocks.0.hook_resid_post"]
    full = wb.run(model, ROWS, plan=[double])
    rest = wb.run(model, ROWS, plan=[double], start=(1, stream))
    assert tiny.same_bytes(rest.logits, full.logits)
    assert rest.receipts == full.receipts


def test_a_run_may_start_and_end_between_the_blocks() -> None:
    model = Counting(tiny.model())
    full = wb.run(model, ROWS, record="all")
    model.forget()
    start = (1, full["blocks.0.hook_resid_post"])
    mid = wb.run(model, ROWS, record="blocks.1.hook_resid_mid", logits=False, start=start)
    assert (model.blocks, model.embedded, model.unembedded) == ([1], 0, [])
    assert tiny.same_bytes(mid["blocks.1.hook_resid_mid"], full["blocks.1.hook_resid_mid"])


@pytest.mark.parametrize(
    ("record", "blocks"),
    [
        ("hook_embed", []),
        ("blocks.0.attn.hook_pattern", [0]),
        (["blocks.1.hook_resid_mid", "blocks.0.ln1.hook_scale"], [0, 1]),
    ],
)
def test_without_logits_no_block_runs_that_nobody_needs(record: Any, blocks: list[int]) -> None:
    model = Counting(tiny.model())
    wb.run(model, ROWS, record=record, logits=False)
    assert (model.blocks, model.unembedded) == (blocks, [])


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 6, 258)),
        ({"positions": "last"}, (3, 1, 258)),
        ({"positions": [0, -1], "vocabulary": [4, 5, 6]}, (3, 2, 3)),
    ],
)
def test_only_the_logits_asked_for_are_computed(
    options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    model = Counting(tiny.model())
    wb.run(model, ROWS, **options)
    assert model.unembedded == [shape]


def test_what_comes_before_the_start_is_neither_recorded_nor_changed() -> None:
    model, stream = tiny.model(), torch.zeros(3, 6, 24)
    for site in ("hook_embed", "blocks.1.hook_resid_post"):
        with pytest.raises(NotRecordedError, match=rf"starts before block 2, after {site}"):
            wb.run(model, ROWS, record=site, start=(2, stream))
        plan = [wb.Intervention(site, wb.ops.zero())]
        with pytest.raises(NeverActedError, match="the run started before block 2"):
            wb.run(model, ROWS, plan=plan, start=(2, stream))


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (2, OptionError, r"start must be a block and the stream before it: \(layer, resid\)"),
        ((2,), OptionError, r"start must be a block and the stream before it: \(layer, resid\)"),
        ((4, torch.zeros(3, 6, 24)), OptionError, r"start\[0\] must be a block in 0…3, got 4"),
        ((-1, torch.zeros(3, 6, 24)), OptionError, r"start\[0\] must be 0 or more, got -1"),
        ((True, torch.zeros(3, 6, 24)), OptionError, r"start\[0\] must be a whole number"),
        ((1, torch.zeros(3, 5, 24)), ShapeError, r"expected \(3, 6, 24\) \(batch pos d_model\)"),
        ((1, torch.zeros(3, 6, 24).double()), ShapeError, r"got \(3, 6, 24\), torch.float64"),
        ((1, torch.full((3, 6, 24), torch.nan)), NonFiniteError, r"blocks\.1\.hook_resid_pre"),
    ],
    ids=["no pair", "one", "high", "negative", "truth", "shape", "dtype", "nan"],
)
def test_a_start_that_cannot_be_is_refused(
    start: Any, error: type[Exception], message: str
) -> None:
    with tiny.unchecked(), pytest.raises(error, match=message):
        wb.run(tiny.model(), ROWS, start=start)
