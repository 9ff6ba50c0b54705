"""Paths from a position: exact, by brute force of one position at a time."""

from itertools import product
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.attribution.examples import ONE, SAME, THREE
from tests.attribution.paths import answers, brute_force, end, ends, reached
from workbench.attribution.known_truth import induction
from workbench.attribution.methods.path_patching import PathPatching
from workbench.core.errors import EmptySelectionError, OptionError

kinds = pytest.mark.parametrize("kind", tiny.KINDS)  # Llama has grouped heads
SENDERS = ["hook_embed", "blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"]
RECEIVERS = (
    *(f"blocks.1.hook_{part}_input H1" for part in "qkv"),
    "blocks.2.hook_k_input H0",
    "blocks.2.hook_mlp_in",
    "logits",
)
AXES = ["sender", "pos", "receiver"]


@kinds
@pytest.mark.parametrize("mlps", ["frozen", "recomputed"])
def test_every_path_from_every_position_is_what_brute_force_says(kind: str, mlps: Any) -> None:
    model = tiny.model(kind, torch.float64)
    found = PathPatching(receivers=RECEIVERS, mlps=mlps)(model, THREE, sites=SENDERS, axes=AXES)
    runs = ends(model, THREE)
    base = answers(model, THREE, runs[0].answer_logits)
    assert [axis.name for axis in found.axes] == AXES
    assert found.axes[1].labels == tuple(map(str, range(8)))  # of the longest prompt
    senders, _, receivers = (axis.labels for axis in found.axes)
    places = list(product(enumerate(senders), range(8), enumerate(receivers)))[::7]
    moved = 0
    for (i, sender), pos, (j, receiver) in places:
        reads = [end(model) if receiver == "logits" else receiver]
        logits = brute_force(model, reached(model, runs, sender, mlps, [pos]), reads)
        effect = answers(model, THREE, logits) - base
        tiny.close(found.per_example[:, i, pos, j], effect, 1e-9)
        moved += bool(effect.abs().max() > 1e-6)
    assert moved > len(places) / 4  # else it would compare zeros


@kinds
def test_positions_together_are_what_brute_force_says(kind: str) -> None:
    model, at = tiny.model(kind, torch.float64), (1, -1)
    method = PathPatching(receivers=RECEIVERS[:3], positions=at)
    found = method(model, ONE, sites="blocks.0.attn.hook_z")
    runs = ends(model, ONE)
    base = answers(model, ONE, runs[0].answer_logits)
    for i, sender in enumerate(found.axes[0].labels):
        held = reached(model, runs, sender, "frozen", list(at))
        for j, receiver in enumerate(found.axes[1].labels):
            logits = brute_force(model, held, [receiver])
            tiny.close(found.per_example[:, i, j], answers(model, ONE, logits) - base, 1e-9)
    assert [axis.name for axis in found.axes] == ["sender", "receiver"]


@kinds
def test_all_positions_together_are_the_whole_path(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    whole = PathPatching(receivers=RECEIVERS)(model, ONE, sites=SENDERS)
    every = PathPatching(receivers=RECEIVERS, positions=tuple(range(6)))
    tiny.close(every(model, ONE, sites=SENDERS).per_example, whole.per_example, 1e-12)


@kinds
def test_negative_positions_are_the_end_of_each_prompt(kind: str) -> None:
    """Read apart: the last position of each prompt is that of the prompt alone."""
    model = tiny.model(kind, torch.float64)
    last = PathPatching(receivers=RECEIVERS, positions=(-1,))
    found = last(model, THREE, sites=SENDERS, axes=AXES)
    assert found.axes[1].labels == ("-1",)
    every = PathPatching(receivers=RECEIVERS)(model, THREE, sites=SENDERS, axes=AXES)
    for row, length in enumerate(len(text) for text in map(str, THREE.clean)):
        tiny.close(found.per_example[row, :, 0], every.per_example[row, :, length - 1], 1e-12)


@kinds
def test_where_prompts_agree_so_far_there_is_no_effect_at_all(kind: str) -> None:
    model = tiny.model(kind)
    found = PathPatching(receivers=RECEIVERS)(model, ONE, sites=SENDERS, axes=AXES)
    assert found.axes[1].labels == tuple("abcdef")  # one prompt: its tokens
    assert not bool(found.per_example[:, :, :2].any())  # they part at the third
    assert bool(found.per_example[:, :, 2].any())
    same = PathPatching(receivers=RECEIVERS)(model, SAME, sites=SENDERS, axes=AXES)
    assert not bool(same.per_example.any())


@kinds
def test_a_plan_holds_and_a_bare_function_is_refused(kind: str) -> None:
    model = tiny.model(kind, torch.float64)
    plan = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.scale(0.5), positions=[2])]
    method = PathPatching(receivers=("logits",))
    apart = method(model, ONE, sites="hook_embed", axes=["pos"], plan=plan)
    one = PathPatching(receivers=("logits",), positions=(2,))
    alone = one(model, ONE, sites="hook_embed", axes=["sender"], plan=plan)
    tiny.close(apart.per_example[:, 2], alone.per_example[:, 0], 1e-12)
    bare = [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.function(lambda x: x * 2))]
    with pytest.raises(OptionError, match="without bare functions where positions are told apart"):
        method(model, ONE, axes=["pos"], plan=bare)


def test_the_known_path_starts_where_it_is_known_to_start() -> None:
    """Head 0.0 writes, at one position, what the keys of head 1.0 look for."""
    truth = induction.build()
    method = PathPatching(receivers=("blocks.1.hook_k_input",))
    metric = wb.metrics.logit(truth.contrast)
    whole = method(truth.model, truth.contrast, metric, "blocks.0.attn.hook_z")
    apart = method(truth.model, truth.contrast, metric, "blocks.0.attn.hook_z", axes=AXES)
    starts = apart.scores[0].abs().sum(-1).nonzero().flatten().tolist()
    assert starts
    assert len(starts) < len(apart.axes[1].labels)
    few = PathPatching(receivers=("blocks.1.hook_k_input",), positions=tuple(starts))
    some = few(truth.model, truth.contrast, metric, "blocks.0.attn.hook_z")
    tiny.close(some.per_example, whole.per_example, 1e-9)


def test_positions_that_are_none_are_refused() -> None:
    for wrong in ((6,), (-7,), (1, 1)):
        with pytest.raises(OptionError, match="positions must be within -6…5, each once"):
            PathPatching(positions=wrong)(tiny.model(), ONE)
    with pytest.raises(EmptySelectionError, match="positions is empty"):
        PathPatching(positions=())(tiny.model(), ONE)


def test_one_place_named_from_both_ends_is_named_twice() -> None:
    six = f"two of these are one place in prompt 0 of {len(ONE.clean)} tokens"
    for wrong in ((5, -1), (0, 3, -6)):
        with pytest.raises(OptionError, match=six):
            PathPatching(positions=wrong)(tiny.model(), ONE)
    assert PathPatching(positions=(5, -2))(tiny.model(), ONE).scores is not None
