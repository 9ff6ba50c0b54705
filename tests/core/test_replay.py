"""A trace of everything keeps the streams and replays one block when another site is read."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.core.counting import Counting
from workbench.core.errors import (
    NotPicklableError,
    NotRecordedError,
    UnknownNameError,
)
from workbench.core.sites import Site
from workbench.models.layers.mlp import MLP

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
sides = pytest.mark.parametrize("side", ["left", "right"])
ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10]]
INSIDE = ("scores", "pattern", "scale", "normalized", "result", "_input", "attn_in")
PLANS: dict[str, list[wb.Intervention]] = {
    "nothing": [],
    "everywhere": [
        wb.Intervention("hook_embed", wb.ops.scale(0.5), rows=0),
        wb.Intervention("blocks.0.hook_resid_pre", wb.ops.add(tiny.normal(24).double())),
        wb.Intervention("blocks.1.hook_resid_pre", wb.ops.scale(2.0), positions=1, optional=True),
        wb.Intervention("blocks.*.attn.hook_pattern", wb.ops.scale(0.7), heads=1),
        wb.Intervention("blocks.1.attn.hook_z", wb.ops.zero(), rows=[0, 2], heads=0),
        wb.Intervention("blocks.2.hook_resid_post", wb.ops.scale(1.5), positions=[0]),
        wb.Intervention("ln_final.hook_normalized", wb.ops.scale(0.9)),
    ],
}
plans = pytest.mark.parametrize("plan", PLANS)


def finite(value: Tensor) -> Tensor:
    """Masked scores as numbers: -inf is not near itself."""
    return value.nan_to_num(neginf=-1e3)


@kinds
@sides
@plans
def test_every_site_replayed_is_as_recorded(kind: str, side: Any, plan: str) -> None:
    model = tiny.model(kind, torch.float64)
    lazy = wb.run(model, ROWS, plan=PLANS[plan], record="all", padding_side=side)
    eager = wb.run(model, ROWS, plan=PLANS[plan], record="*", padding_side=side)
    assert list(lazy) == list(eager) == list(model.sites)
    for site, value in lazy.items():
        tiny.close(finite(value), finite(eager[site]), 1e-10)
        tiny.close(finite(lazy[site]), finite(eager[site]), 1e-10)
    tiny.close(lazy.logits, eager.logits, 1e-10)
    for one, other in zip(lazy.receipts, eager.receipts, strict=True):
        assert (one.acted, one.tokens) == (other.acted, other.tokens)
        assert one.change == pytest.approx(other.change, rel=1e-12)


@kinds
@plans
def test_a_site_outside_fused_kernels_is_bit_equal_to_recording_it(kind: str, plan: str) -> None:
    model = tiny.model(kind, torch.float64)
    lazy = wb.run(model, ROWS, plan=PLANS[plan], record="all")
    for site in model.sites:
        if not any(part in str(site) for part in INSIDE):
            eager = wb.run(model, ROWS, plan=PLANS[plan], record=site)
            assert tiny.same_bytes(lazy[site], eager[site]), str(site)


@kinds
def test_the_run_is_bit_equal_to_one_that_records_nothing(kind: str) -> None:
    model = tiny.model(kind)
    for plan in ([], [wb.Intervention("blocks.1.hook_mlp_out", wb.ops.zero())]):
        lazy, plain = wb.run(model, ROWS, plan=plan, record="all"), wb.run(model, ROWS, plan=plan)
        assert tiny.same_bytes(lazy.logits, plain.logits)


def test_reading_runs_one_block_and_reading_several_sites_of_it_too() -> None:
    model = Counting(tiny.model())
    with tiny.unchecked():  # beartype looks into a mapping it is given
        trace = wb.run(model, ROWS, record="all")
    assert (model.blocks, model.embedded, len(model.unembedded)) == ([0, 1, 2], 1, 1)
    model.forget()
    _ = trace["blocks.1.attn.hook_pattern"]
    assert model.blocks == [1]
    read = trace.read(["blocks.1.*", "blocks.2.attn.hook_z"])
    assert model.blocks == [1, 1, 2]
    assert list(read) == [s for s in trace if s.layer == 1 or str(s) == "blocks.2.attn.hook_z"]
    model.forget()
    with tiny.unchecked():
        assert len(list(trace.items())) == len(list(trace.values())) == len(model.sites)
    assert (model.blocks, model.embedded, len(model.unembedded)) == ([0, 1, 2] * 2, 2, 2)


def test_a_replay_ends_at_the_last_site_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = MLP.feed

    def counted(mlp: MLP, x: Tensor, tap: wb.Tap) -> Tensor:
        fed.append(1)
        return feed(mlp, x, tap)

    monkeypatch.setattr(MLP, "feed", counted)
    trace = wb.run(tiny.model("gpt2"), ROWS, record="all")
    whole = wb.run(tiny.model("gpt2"), ROWS, record="*")
    fed.clear()
    patterns = trace.read("blocks.*.attn.hook_pattern")
    both = trace.read(["blocks.1.attn.hook_pattern", "blocks.1.hook_attn_out"])
    assert fed == []
    for site, value in {**patterns, **both}.items():
        tiny.close(value, whole[site], 1e-5)
    assert len(trace.read(["blocks.1.attn.hook_pattern", "blocks.1.mlp.hook_post"])) == 2
    assert fed == [1]


def test_streams_are_read_without_running_anything() -> None:
    model = Counting(tiny.model())
    plan = [wb.Intervention("blocks.1.hook_resid_pre", wb.ops.scale(2.0))]
    trace = wb.run(model, ROWS[:1], plan=plan, record="all")
    model.forget()
    _ = trace.read("blocks.*.hook_resid_post"), trace["blocks.0.hook_resid_pre"]
    assert model.blocks == []
    changed = trace["blocks.1.hook_resid_pre"]  # the plan's, not the kept one
    assert model.blocks == [1]
    assert tiny.same_bytes(changed, 2 * trace["blocks.0.hook_resid_post"])


def test_a_trace_does_not_grow_by_being_read() -> None:
    trace = wb.run(tiny.model(), ROWS, record="all")
    before = dict(trace.activations)
    first = trace["blocks.1.mlp.hook_post"]
    assert trace["blocks.1.mlp.hook_post"] is not first
    assert dict(trace.activations) == before
    kept = {value.data_ptr() for value in trace.activations.values()}
    assert len(kept) == tiny.model().sizes.n_layers + 1


def test_receipts_are_counted_once() -> None:
    plan = [wb.Intervention("blocks.*.attn.hook_pattern", wb.ops.zero())]
    trace = wb.run(tiny.model(), ROWS, plan=plan, record="all")
    told = trace.receipts
    _ = trace["blocks.1.attn.hook_pattern"], list(trace.items())
    assert trace.receipts == told
    assert told[0].acted == 3


@pytest.mark.parametrize(
    "name", ["blocks.1.attn.hook_pattern", "hook_embed", "ln_final.hook_scale"]
)
def test_it_is_a_mapping_of_all_sites(name: str) -> None:
    trace = wb.run(tiny.model(), ROWS, record="all")
    assert name in trace
    assert Site.parse(name) in trace
    assert len(trace) == len(tiny.model().sites)
    assert trace.get(name) is not None  # pyright: ignore[reportArgumentType]
    assert "blocks.9.hook_resid_post" not in trace
    with pytest.raises(NotRecordedError, match=r"blocks\.9\.hook_resid_post was not recorded"):
        _ = trace["blocks.9.hook_resid_post"]
    with pytest.raises(UnknownNameError, match="No site named"):
        trace.read("blocks.9.*")


def test_without_logits_nothing_is_unembedded_until_it_is_read() -> None:
    model = Counting(tiny.model())
    trace = wb.run(model, ROWS, record="all", logits=False)
    assert model.unembedded == []
    whole = wb.run(tiny.model(), ROWS)
    tiny.close(trace["hook_unembed"], whole.logits, 1e-5)


def test_restricted_logits_restrict_no_site() -> None:
    trace = wb.run(tiny.model(), ROWS, record="all", positions="last", vocabulary=[3, 4])
    assert trace.logits.shape == (3, 1, 2)
    assert trace["hook_unembed"].shape == (3, 6, 258)


class Counter:
    """Answers differently each time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: Tensor) -> Tensor:
        self.calls += 1
        return value * self.calls


def test_a_bare_function_is_called_once_and_everything_recorded_as_it_ran() -> None:
    count, model = Counter(), tiny.model()
    plan = [wb.Intervention("blocks.*.hook_mlp_out", count)]
    trace = wb.run(model, ROWS, plan=plan, record="all")
    assert trace.replay is None
    assert list(trace) == list(model.sites)
    mid, out, post = (
        trace[f"blocks.2.hook_{name}"] for name in ("resid_mid", "mlp_out", "resid_post")
    )
    assert tiny.same_bytes(mid + out, post)
    assert count.calls == 3


def test_with_a_tap_everything_is_recorded_as_it_ran() -> None:
    spy = tiny.Spy(lambda site: False)
    trace = wb.run(tiny.model(), ROWS, record="all", tap=spy)
    assert trace.replay is None
    calls = len(spy.fired)
    assert len(list(trace.items())) == len(tiny.model().sites)
    assert len(spy.fired) == calls


def test_a_glob_is_recorded_as_it_runs() -> None:
    assert wb.run(tiny.model(), ROWS, record="*").replay is None
    assert wb.run(tiny.model(), ROWS, record=lambda site: True).replay is None


def test_it_can_be_read_in_inference_mode_and_differentiated_through() -> None:
    trace = wb.run(tiny.model(), ROWS, record="all")
    with torch.inference_mode():
        z = trace["blocks.1.attn.hook_z"]
    assert not z.is_inference()
    assert not z.requires_grad


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
@pytest.mark.parametrize("record", ["all", "hook_embed"])
def test_a_trace_refuses_to_be_pickled_and_says_what_to_do(copied: Any, record: str) -> None:
    trace = wb.run(tiny.model(), ROWS, record=record)
    with pytest.raises(NotPicklableError, match="Save the tensors you need"):
        copied(trace)
