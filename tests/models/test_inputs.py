"""What each head reads: the sites before the norm, their identities and their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.axes import HEAD_INPUTS
from workbench.core.errors import OptionError, UnknownNameError
from workbench.core.metrics import TokenMetric
from workbench.core.sites import Site

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
parts = pytest.mark.parametrize("part", ["q", "k", "v"])
IDS = tiny.tokens(2, 7)
METRIC = TokenMetric("logit", "logits", 2, None, lambda logits, examples: logits[:, 97])


def model(kind: str) -> wb.Model:
    """In float64, where identities are exact to 1e-10."""
    return tiny.model(kind, torch.float64)


def normalised(kind: str, layer: int, x: Tensor) -> Tensor:
    """What the first norm of a block makes of any stream."""
    norm = tiny.model(kind, torch.float64).stack.get_submodule(f"blocks.{layer}.ln1")
    if kind == "llama":
        return F.rms_norm(x, x.shape[-1:], norm.get_parameter("weight"), 1e-6)
    return F.layer_norm(
        x, x.shape[-1:], norm.get_parameter("weight"), norm.get_parameter("bias"), 1e-5
    )


def projected(kind: str, part: str, head: int, n: Tensor) -> Tensor:
    """One head's query, key or value of a normalised stream, in block 1."""
    made = tiny.model(kind, torch.float64)
    stack, d = made.stack, made.sizes.d_head
    weight = stack.get_parameter(f"blocks.1.attn.{part}.weight")[head * d : (head + 1) * d]
    bias = stack.get_parameter(f"blocks.1.attn.{part}.bias")[head * d : (head + 1) * d]
    return n @ weight.mT + bias


@kinds
def test_each_head_reads_the_stream(kind: str) -> None:
    trace = wb.run(model(kind), IDS, record=lambda site: site.layer == 1)
    for site, value in trace.items():
        if site.short in HEAD_INPUTS:
            stream = trace["blocks.1.hook_resid_pre"][:, :, None]
            assert torch.equal(value, stream.expand_as(value))


@kinds
@parts
def test_a_change_of_one_head_s_input_reaches_that_head_through_the_norm(
    kind: str, part: str
) -> None:
    noise = tiny.normal(24, dtype=torch.float64)
    site = f"blocks.1.hook_{part}_input"
    push = wb.Intervention(site, wb.ops.add(noise), heads=[1])
    record = ["blocks.1.hook_resid_pre", *(f"blocks.1.attn.hook_{which}" for which in "qkv")]
    base, pushed = (wb.run(model(kind), IDS, plan=p, record=record) for p in ([], [push]))
    for which in "qkv":
        before, after = (trace[f"blocks.1.attn.hook_{which}"] for trace in (base, pushed))
        moved = (after - before).norm(dim=-1) > 1e-9
        assert bool(moved[:, :, 1].all()) == (which == part)
        assert not bool(moved[:, :, [h for h in range(moved.shape[2]) if h != 1]].any())
    stream = base["blocks.1.hook_resid_pre"] + noise
    expected = projected(kind, part, 1, normalised(kind, 1, stream))
    tiny.close(pushed[f"blocks.1.attn.hook_{part}"][:, :, 1], expected)


def test_a_change_of_what_all_read_reaches_all() -> None:
    noise = tiny.normal(24, dtype=torch.float64)
    plans = [wb.Intervention(f"blocks.1.{name}", wb.ops.add(noise)) for name in ALL]
    whole = wb.run(model("gpt2"), IDS, plan=plans[:1])
    each = wb.run(model("gpt2"), IDS, plan=plans[1:])
    tiny.close(whole.logits, each.logits)


ALL = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")


def test_grouped_heads_have_no_input_of_all_three() -> None:
    with pytest.raises(UnknownNameError, match=r"No site named 'blocks.0.hook_attn_in'"):
        wb.run(model("llama"), IDS, record="blocks.0.hook_attn_in")
    with pytest.raises(OptionError, match=r"heads at blocks.0.hook_k_input must be below 2"):
        wb.run(
            model("llama"),
            IDS,
            plan=[wb.Intervention("blocks.0.hook_k_input", wb.ops.zero(), heads=[2])],
        )


@kinds
@pytest.mark.parametrize("name", ["ln1.hook_scale", "ln1.hook_normalized"])
def test_a_change_of_the_norm_is_the_same_while_somebody_looks_at_the_inputs(
    kind: str, name: str
) -> None:
    change = [wb.Intervention(f"blocks.1.{name}", wb.ops.scale(1.5), positions=[3])]
    alone = wb.run(model(kind), IDS, plan=change)
    watched = wb.run(model(kind), IDS, plan=change, record="blocks.1.hook_?_input")
    tiny.close(alone.logits, watched.logits)


@kinds
@parts
def test_a_plan_that_changes_an_input_and_the_norm_of_a_layer_is_refused(
    kind: str, part: str
) -> None:
    push = wb.Intervention(f"blocks.1.hook_{part}_input", wb.ops.scale(2.0))
    norm = wb.Intervention("blocks.1.ln1.hook_normalized", wb.ops.scale(2.0))
    message = r"plan\[0\] at blocks.1.hook_._input must be left out where plan\[1\] changes"
    with pytest.raises(OptionError, match=message):
        wb.run(model(kind), IDS, plan=[push, norm])
    other = wb.Intervention("blocks.2.ln1.hook_normalized", wb.ops.scale(2.0))
    assert wb.run(model(kind), IDS, plan=[push, other]).receipts[1].acted == 1


@kinds
def test_gradients_of_the_inputs_add_up_and_leave_those_of_the_norm_alone(kind: str) -> None:
    made = model(kind)
    sites = [f"blocks.1.hook_{part}_input" for part in "qkv"]
    norm = "blocks.1.ln1.hook_normalized"
    got = wb.gradients(made, IDS, [*sites, norm], METRIC)
    alone = wb.gradients(made, IDS, norm, METRIC)
    tiny.close(got[Site.parse(norm)], alone[Site.parse(norm)])
    # All three paths together are the path through attention of the stream's own gradient.
    whole = wb.gradients(made, IDS, ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid"], METRIC)
    through = whole[Site.parse("blocks.1.hook_resid_pre")]
    straight = whole[Site.parse("blocks.1.hook_resid_mid")]
    total = sum(got[Site.parse(site)].sum(2) for site in sites)
    tiny.close(torch.as_tensor(total) + straight, through)
