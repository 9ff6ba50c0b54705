"""Path patching is exact: a brute force of hand-set taps says the same for every pair."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.attribution.examples import ONE, SAME, THREE
from tests.attribution.paths import (
    INPUTS,
    Edit,
    Put,
    answers,
    brute_force,
    end,
    ends,
    named,
    pairs,
    reached,
)
from workbench.attribution.known_truth import induction
from workbench.attribution.methods.activation_patching import ActivationPatching
from workbench.attribution.methods.path_patching import PathPatching
from workbench.core.errors import EmptySelectionError, OptionError, UnknownNameError
from workbench.core.sites import Site

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
EVERY = (*INPUTS, "logits")
SENDERS = ["hook_embed", "blocks.*.attn.hook_z", "blocks.*.hook_mlp_out", "blocks.1.hook_resid_pre"]


@kinds
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mlps", ["frozen", "recomputed"])
def test_every_path_is_what_brute_force_says(kind: str, mlps: str) -> None:
    model = tiny.model(kind, torch.float64)
    method = PathPatching(receivers=EVERY, mlps=mlps)  # pyright: ignore[reportArgumentType]
    found = method(model, THREE, sites=SENDERS)
    runs = ends(model, THREE)
    base = answers(model, THREE, runs[0].answer_logits)
    held = {name: reached(model, runs, name, mlps) for name in found.axes[0].labels}
    moved = 0
    for i, sender, j, receiver in pairs(found):
        to = end(model) if receiver == "logits" else receiver
        logits = brute_force(model, held[sender], [to])
        effect = answers(model, THREE, logits) - base
        tiny.close(found.per_example[:, i, j], effect, 1e-9)
        moved += bool(effect.abs().max() > 1e-6)
    assert moved > found.scores.numel() / 3  # else it would compare zeros


@kinds
def test_denoising_is_noising_the_other_way_round(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    there = PathPatching(receivers=("blocks.1.hook_q_input",), direction="denoising")
    turned = wb.Contrast(clean=ONE.corrupt, corrupt=ONE.clean, target=ONE.target, foil=ONE.foil)
    back = PathPatching(receivers=("blocks.1.hook_q_input",))
    one, other = there(model, ONE), back(model, turned)
    assert torch.equal(one.per_example, other.per_example)
    assert bool(one.per_example.any())


@kinds
def test_parts_patched_together_are_what_brute_force_says(kind: str) -> None:
    """Several receivers at once, and several senders; the logits override all beside them."""
    model, some = tiny.model(kind, torch.float64), ("blocks.1.hook_k_input", "blocks.2.hook_mlp_in")
    runs, sender = ends(model, THREE), "blocks.0.hook_mlp_out"
    base = answers(model, THREE, runs[0].answer_logits)
    joint = PathPatching(receivers=some)(model, THREE, sites=sender, axes=["sender"])
    logits = brute_force(model, reached(model, runs, sender, "frozen"), list(some))
    expected = answers(model, THREE, logits) - base
    tiny.close(joint.per_example[:, 0], expected, 1e-9)
    with_end = PathPatching(receivers=(*some, "logits"))(model, THREE, axes=["sender"])
    tiny.close(with_end.per_example, PathPatching()(model, THREE, axes=["sender"]).per_example)
    senders = PathPatching()(model, THREE, sites="blocks.*.attn.hook_z", axes=["receiver"])
    held: list[Edit] = [
        (str(site), None, runs[site.short == "attn.hook_z"][site])
        for site in model.sites
        if site.short in ("attn.hook_z", "hook_mlp_out")
    ]
    logits = wb.run(model, runs[0].batch, tap=Put(held)).answer_logits
    tiny.close(senders.per_example[:, 0], answers(model, THREE, logits) - base, 1e-9)
    assert (joint.axes[0].labels, senders.axes[0].labels) == ((sender,), ("logits",))


@kinds
@pytest.mark.usefixtures("unchecked")
def test_a_plan_holds_in_every_run(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    plan = [
        wb.Intervention("blocks.1.hook_resid_pre", wb.ops.add(tiny.normal(24).double())),
        wb.Intervention("blocks.0.attn.hook_z", wb.ops.scale(0.5), heads=1),
        wb.Intervention("blocks.2.hook_mlp_out", wb.ops.zero(), rows=[1], positions=[-1]),
    ]
    method = PathPatching(receivers=("blocks.*.hook_q_input", "blocks.*.hook_mlp_in", "logits"))
    found = method(model, THREE, sites=SENDERS[:3], plan=plan)
    words = THREE.on(model)
    runs = tuple(
        wb.run(model, batch, record=model.sites, plan=plan)
        for batch in (words.clean, words.corrupt)
    )
    base = answers(model, THREE, runs[0].answer_logits)
    held: list[Edit] = [
        (str(site), None, runs[0][site])
        for site in model.sites
        if site.short in ("attn.hook_z", "hook_mlp_out")
    ]
    for i, sender, j, receiver in list(pairs(found))[::5]:
        where, head = named(sender)
        to, of = named(end(model) if receiver == "logits" else receiver)
        put = Put([*held, (where, head, runs[1][where])])
        reached = wb.run(model, words.clean, tap=put, plan=plan, record=[to])
        last = wb.run(model, words.clean, tap=Put([(to, of, reached[to])]), plan=plan)
        expected = answers(model, THREE, last.answer_logits) - base
        tiny.close(found.per_example[:, i, j], expected, 1e-9)


def test_the_known_path_is_found() -> None:
    """Head 0.0 acts by the keys of head 1.0 alone, and that by the logits alone."""
    truth = induction.build()
    method = PathPatching(
        receivers=(
            "blocks.1.hook_q_input",
            "blocks.1.hook_k_input",
            "blocks.1.hook_v_input",
            "logits",
        )
    )
    metric = wb.metrics.logit(truth.contrast)
    found = method(truth.model, truth.contrast, metric, "blocks.*.attn.hook_z")
    expected = {
        ("blocks.0.attn.hook_z H0", "blocks.1.hook_k_input H0"): -10 * 12 / 13,
        ("blocks.1.attn.hook_z H0", "logits"): -10.0,
    }
    for i, sender, j, receiver in pairs(found):
        value = float(found.scores[i, j])
        assert value == pytest.approx(expected.get((sender, receiver), 0.0), abs=1e-9)


@kinds
def test_single_receivers_sum_to_the_whole_effect_to_first_order(kind: str) -> None:
    """With MLPs frozen every path leaves the sender by one edge, and all edges are counted."""
    errors, sizes = [], []
    for step in (1e-3, 1e-4):
        model = nearly_alike(kind, step)
        for site in ("blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"):
            head = ["head"] if site.endswith("z") else []
            whole = ActivationPatching()(model, ONE, sites=site, axes=["layer", *head])
            parts = PathPatching(receivers=EVERY)(model, ONE, sites=site)
            errors.append(float((parts.scores.sum(1) - whole.scores[0]).abs().max()))
            sizes.append(float(whole.scores.abs().max()))
    assert errors[2] < errors[0] / 50  # the error falls as the square of the step
    assert errors[3] < errors[1] / 50
    assert sizes[2] > sizes[0] / 20


def nearly_alike(kind: str, step: float) -> wb.Model:
    """A model in whose eyes the donor's odd token is almost the base's."""
    reference = tiny.hf(kind).double()
    table = reference.get_input_embeddings().weight
    odd, base = ord("X"), ord("c")
    with torch.no_grad():
        table[odd] = table[base] + step * tiny.normal(24, dtype=torch.float64)
    return wb.load(reference, tokenizer=tiny.Bytes(), dtype=torch.float64)


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_it_is_the_classic_direct_path(component: str) -> None:
    from tests.compat.classic import raw
    from workbench.compat.transformer_lens import patching

    facade, model = raw("gpt2", torch.float64), tiny.model("gpt2", torch.float64)
    words = ONE.on(model)
    clean, corrupt = ({str(s): v for s, v in run.items()} for run in ends(model, ONE))
    every = patching.get_act_patch_direct_path_all_sources(
        facade,
        words.corrupt.tokens,
        clean,
        corrupt,
        lambda logits: answers(model, ONE, logits[:, -1]).mean(),
        component,  # pyright: ignore[reportArgumentType]
    )
    method = PathPatching(receivers=(f"blocks.*.hook_{component}_input",), direction="denoising")
    found = method(model, ONE, sites="blocks.*.attn.hook_z")
    values = (found.scores + found.base.mean()).reshape(every.shape)
    later = torch.ones(3, 3).triu(1)[:, None, :, None].expand(every.shape) > 0
    torch.testing.assert_close(values.float()[later], every[later], rtol=1e-5, atol=1e-5)


@kinds
def test_single_heads_can_be_named(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    every = PathPatching(receivers=EVERY)(model, ONE)
    names = ("blocks.*.hook_k_input H1", "blocks.2.hook_q_input H0", "logits")
    some = PathPatching(receivers=names, heads=(2,))(model, ONE, sites="blocks.*.attn.hook_z")
    senders, receivers = (axis.labels for axis in some.axes)
    assert senders == tuple(f"blocks.{layer}.attn.hook_z H2" for layer in range(3))
    assert receivers[0] == "blocks.0.hook_k_input H1"
    assert len(receivers) == 5
    for i, sender, j, receiver in pairs(some):
        where = [
            axis.labels.index(name)
            for axis, name in zip(every.axes, (sender, receiver), strict=True)
        ]
        tiny.close(some.scores[i, j], every.scores[where[0], where[1]])
    with pytest.raises(OptionError, match=r"one of blocks\.0\.hook_k_input H0"):
        PathPatching(receivers=("blocks.0.hook_k_input H9",))(model, ONE)
    with pytest.raises(OptionError, match="heads"):
        PathPatching(heads=(9,))(model, ONE)


@kinds
def test_prompts_that_are_equal_move_nothing(kind: str) -> None:
    found = PathPatching(receivers=EVERY)(tiny.model(kind), SAME, sites=SENDERS)
    assert not bool(found.per_example.any())


@kinds
@pytest.mark.usefixtures("unchecked")
def test_small_batches_and_threads_change_nothing(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    large = PathPatching(receivers=EVERY)
    alone = large(model, THREE).per_example
    small = PathPatching(receivers=EVERY, max_tokens=1)(model, THREE, sites="blocks.0.attn.hook_z")
    tiny.close(small.per_example, alone[:, : small.per_example.shape[1]])
    digest, metric = (
        tiny.digest(tiny.model(kind, torch.float64)),
        wb.metrics.logit_difference(THREE),
    )
    slope = wb.gradients(model, list(THREE.clean), "hook_embed", metric)
    few = PathPatching(receivers=("logits", "blocks.1.hook_k_input"))
    known = few(model, THREE).per_example
    with ThreadPoolExecutor(8) as pool:
        paths = [pool.submit(few, model, THREE) for _ in range(8)]
        slopes = [
            pool.submit(wb.gradients, model, list(THREE.clean), "hook_embed", metric)
            for _ in range(16)
        ]
        assert all(torch.equal(one.result().per_example, known) for one in paths)
        site = Site("hook_embed")
        assert all(torch.equal(one.result()[site], slope[site]) for one in slopes)
    assert tiny.digest(tiny.model(kind, torch.float64)) == digest


def test_what_makes_no_sense_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(OptionError, match=r"senders: attn\.hook_z, hook_attn_out"):
        PathPatching()(model, ONE, sites="blocks.0.hook_q_input")
    with pytest.raises(OptionError, match="hook_v_input or 'logits'"):
        PathPatching(receivers=("blocks.0.hook_resid_pre",))(model, ONE)
    with pytest.raises(UnknownNameError, match="No site named 'logit'"):
        PathPatching(receivers=("logit",))(model, ONE)
    with pytest.raises(EmptySelectionError, match="receivers"):
        PathPatching(receivers=())(model, ONE)
    with pytest.raises(OptionError, match="'frozen' or 'recomputed'"), tiny.unchecked():
        PathPatching(mlps="live")(model, ONE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match="'noising' or 'denoising'"), tiny.unchecked():
        PathPatching(direction="up")(model, ONE)  # pyright: ignore[reportArgumentType]
    cut = wb.Intervention("blocks.1.hook_q_input", wb.ops.zero())
    with pytest.raises(OptionError, match="without changes at the inputs of heads"):
        PathPatching()(model, ONE, plan=[cut])
