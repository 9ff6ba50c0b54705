"""Every argument of the public calls refuses what it cannot be, by name and before it is used.

Nothing is rounded, and nothing a caller passes ends in an error from deep inside torch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.attribution import METHODS as ATTRIBUTION
from workbench.attribution.known_truth import induction
from workbench.core.direction import Direction
from workbench.core.errors import WorkbenchError
from workbench.core.harvest import harvest
from workbench.core.provenance import Provenance
from workbench.lenses import METHODS as LENSES
from workbench.steering import METHODS as STEERING

pytestmark = pytest.mark.usefixtures("unchecked")
MODEL = induction.build().model
TEXT, SITE = "fbhadgecfbhad", "blocks.0.hook_resid_post"
CONTRAST = wb.Contrast(clean=TEXT, corrupt="fchadgecfbhad", target="g", foil="e")
METRIC = wb.metrics.logit_difference(CONTRAST)
ZERO = wb.ops.zero()
SIDES: dict[str, Any] = {"positive": ["abc", "bcd"], "negative": ["fgh", "ghf"], "site": SITE}
HAPPY = Direction(
    site=wb.Site.parse(SITE),
    vector=torch.ones(MODEL.sizes.d_model),
    gap=1.0,
    sigma=1.0,
    norm=1.0,
    unit="activation",
    checks=(),
    provenance=Provenance("m", "s", "model", "f", "float32", "d"),
)


def patch(**options: Any) -> Any:
    patching: Any = ATTRIBUTION["activation_patching"]
    return patching(MODEL, **{"contrast": CONTRAST, "sites": SITE, "axes": ["layer"], **options})


def steer(**options: Any) -> Any:
    return STEERING["mean_difference"](MODEL, **{**SIDES, **options})


MASK, FLOATS = torch.tensor([True, False]), torch.tensor([1.5])
NOT_TEXT: list[Any] = [1.5, object(), {}]
NOT_INDEX = [*NOT_TEXT, True, "x", b"ab", [1.5], [True], [None], MASK, FLOATS, np.array([1.0])]
NOT_NUMBER = [*NOT_TEXT[1:], True, "x", b"ab", [1.5], FLOATS, float("nan"), None]
NOT_HEAT = [*NOT_TEXT[1:], True, "x", b"ab", [True], ["x"], [1.0, 1.0], float("nan"), None, -1]
NOT_TOP_K = [*NOT_TEXT, True, "x", b"ab", [1.5], [True], [1, 1], MASK, FLOATS, np.array([1.0]), 0]
NOT_TENSOR = [*NOT_TEXT, None, "x", 1, [1.5], MASK, np.ones(3), torch.tensor([1, 2])]
NOT_SITE = [*NOT_TEXT, True, None, [], [None], [1.5], MASK, -1, "block.0", b"ab"]
NOT_MODEL = [*NOT_TEXT, None, "smollm2-135m-instruct", []]
NOT_PROMPT = [*NOT_TEXT, None, [], "", [True], [1.5], [None], MASK, FLOATS, b"", [[]]]
WRONG: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "run model": (lambda v: wb.run(v, TEXT), NOT_MODEL),
    "run prompt": (lambda v: wb.run(MODEL, v), NOT_PROMPT),
    "run plan": (lambda v: wb.run(MODEL, TEXT, plan=v), [*NOT_TEXT, None, "x", [1], MASK]),
    "run record": (lambda v: wb.run(MODEL, TEXT, record=v), [*NOT_TEXT, "x", True, [1], MASK]),
    "run positions": (lambda v: wb.run(MODEL, TEXT, positions=v), [*NOT_INDEX, [], 99, -99]),
    "run vocabulary": (lambda v: wb.run(MODEL, TEXT, vocabulary=v), [*NOT_INDEX, [], -1, 10**30]),
    "run logits": (lambda v: wb.run(MODEL, TEXT, logits=v), [1, None, "x"]),
    "run padding": (lambda v: wb.run(MODEL, TEXT, padding_side=v), [None, "middle", 1]),
    "run tap": (lambda v: wb.run(MODEL, TEXT, tap=v), [*NOT_TEXT, None, print]),
    "generate model": (lambda v: wb.generate(v, TEXT), NOT_MODEL),
    "generate prompt": (lambda v: wb.generate(MODEL, v, max_new_tokens=1), NOT_PROMPT),
    "generate length": (lambda v: wb.generate(MODEL, TEXT, max_new_tokens=v), [*NOT_INDEX, 0]),
    "generate heat": (lambda v: wb.generate(MODEL, TEXT, temperature=v), NOT_HEAT),
    "generate top_k": (lambda v: wb.generate(MODEL, TEXT, top_k=v), NOT_TOP_K),
    "generate top_p": (lambda v: wb.generate(MODEL, TEXT, top_p=v), [*NOT_NUMBER[:-1], 0, 1.1]),
    "generate seed": (lambda v: wb.generate(MODEL, TEXT, seed=v), [*NOT_INDEX, None, [1, 2], -1]),
    "generate stop": (lambda v: wb.generate(MODEL, TEXT, stop=v), [*NOT_TEXT, None, "", [1]]),
    "generate stream": (lambda v: wb.generate(MODEL, TEXT, stream=v), [1, None, "x"]),
    "intervention site": (lambda v: wb.Intervention(v, ZERO), NOT_SITE),
    "intervention operator": (lambda v: wb.Intervention(SITE, v), [*NOT_TEXT, None, "zero"]),
    "positions": (lambda v: wb.Intervention(SITE, ZERO, positions=v), [*NOT_INDEX, []]),
    "heads": (lambda v: wb.Intervention(SITE, ZERO, heads=v), [*NOT_INDEX, [], -1]),
    "rows": (lambda v: wb.Intervention(SITE, ZERO, rows=v), [*NOT_INDEX, [], -1]),
    "neurons": (lambda v: wb.Intervention(SITE, ZERO, neurons=v), [*NOT_INDEX, [], -1]),
    "keys": (lambda v: wb.Intervention(SITE, ZERO, keys=v), [*NOT_INDEX, [], -1]),
    "strength": (lambda v: wb.Intervention(SITE, ZERO, strength=v), NOT_NUMBER),
    "unit size": (lambda v: wb.Intervention(SITE, ZERO, unit_size=v), NOT_NUMBER),
    "optional": (lambda v: wb.Intervention(SITE, ZERO, optional=v), [1, None, "no"]),
    "label": (lambda v: wb.Intervention(SITE, ZERO, label=v), [1, None, ["x"]]),
    "set": (wb.ops.set, NOT_TENSOR),
    "add": (wb.ops.add, NOT_TENSOR),
    "scale": (wb.ops.scale, NOT_NUMBER),
    "project_out": (wb.ops.project_out, [None, 1.5, "x", [1.0], MASK, np.ones(3)]),
    "center": (lambda v: wb.ops.project_out(torch.ones(3), center=v), [1.5, "x", [1.0], MASK]),
    "function": (wb.ops.function, [None, 1.5, "x"]),
    "plan": (wb.Plan, [None, 1.5, "x", [1], ["x"], [wb.Intervention(SITE, ZERO)]]),
    "clean": (lambda v: wb.Contrast(v, TEXT, "g", "e").on(MODEL), NOT_PROMPT),
    "target": (lambda v: wb.Contrast(TEXT, TEXT, v, "e").on(MODEL), [*NOT_INDEX, [], None]),
    "metric": (wb.metrics.logit_difference, [None, 1.5, "x", TEXT]),
    "metric of a run": (METRIC, [None, 1.5, "x", torch.zeros(1, 13, 20)]),
    "gradients sites": (lambda v: wb.gradients(MODEL, TEXT, v, METRIC), NOT_SITE),
    "gradients metric": (lambda v: wb.gradients(MODEL, TEXT, SITE, v), [None, 1.5, "x", print]),
    "sweep cells": (lambda v: wb.sweep(MODEL, TEXT, v, METRIC), [*NOT_TEXT, None, [], [1.5]]),
    "sweep metric": (
        lambda v: wb.sweep(MODEL, TEXT, [wb.Intervention(SITE, ZERO)], v),
        [None, "logit_difference", print],
    ),
    "harvest position": (lambda v: harvest(MODEL, [TEXT], SITE, position=v), [*NOT_INDEX, 99]),
    "harvest padding": (lambda v: harvest(MODEL, [TEXT], SITE, padding_side=v), [None, "middle"]),
    "spans": (lambda v: harvest(MODEL, [TEXT], SITE, position=wb.Spans(((v, 9),))), NOT_INDEX),
    "sink": (lambda v: wb.harvest_into(v, MODEL, [TEXT], SITE), [*NOT_TEXT, None, [1], "rows"]),
    "top k": (wb.sinks.TopK, [*NOT_INDEX, 0]),
    "edges": (wb.sinks.Histogram, [*NOT_TEXT, None, [], [1.0], [1.0, None], "ab", MASK]),
    "covariance": (lambda v: wb.sinks.Moments(covariance=v), [1, None, "x"]),
    "harvest tokens": (lambda v: harvest(MODEL, [TEXT], SITE, max_tokens=v), [*NOT_INDEX, 0]),
    "direction strength": (HAPPY.at, NOT_NUMBER),
    "direction unit": (lambda v: HAPPY.at(1.0, unit=v), [None, 1, ["gap"], "sd"]),
    "direction site": (lambda v: HAPPY.at(1.0, site=v), [1.5, [], MASK, "block.0"]),
    "patching sites": (lambda v: patch(sites=v), [v for v in NOT_SITE if v is not None]),
    "patching axes": (lambda v: patch(axes=v), [1.5, [], ["heads"], "lay", MASK]),
    "patching contrast": (lambda v: patch(contrast=v), [None, 1.5, "x"]),
    "steering texts": (lambda v: steer(positive=v), [None, 1.5, "abc", [1, 2], ["abc"], {}]),
    "steering site": (lambda v: steer(site=v), [*NOT_SITE, "blocks.*.hook_resid_post"]),
    "steering position": (lambda v: steer(position=v), [*NOT_INDEX, "all", [0, 1]]),
    "lens prompt": (lambda v: LENSES["logit_lens"](MODEL, v), [*NOT_PROMPT, [TEXT, TEXT]]),
    "lens watch": (lambda v: LENSES["logit_lens"](MODEL, TEXT, watch=v), [None, 1.5, "xx", [1.5]]),
    "lens top_k": (lambda v: LENSES["logit_lens"](MODEL, TEXT, top_k=v), [*NOT_INDEX, 0, None]),
}


@pytest.mark.parametrize("argument", WRONG)
def test_an_argument_refuses_what_it_cannot_be(argument: str) -> None:
    call, values = WRONG[argument]
    for value in values:
        with pytest.raises(WorkbenchError) as caught:
            call(value)
        assert len(str(caught.value)) > 15, (argument, value)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    three: Any = np.int64(3)
    seed: Any = torch.tensor(3)
    made = wb.generate(MODEL, TEXT, max_new_tokens=three, temperature=1.0, seed=seed)
    assert made.tokens == wb.generate(MODEL, TEXT, max_new_tokens=3, temperature=1.0, seed=3).tokens
    columns = wb.run(MODEL, TEXT, positions=[three], vocabulary=torch.tensor([1, 2])).logits
    assert columns.shape == (1, 1, 2)
    assert wb.Intervention(SITE, ZERO, heads=np.array([0, 1])).heads == (0, 1)
    assert HAPPY.at(seed).strength == 3.0


def test_the_calls_above_work_with_what_they_are_meant_for() -> None:
    assert patch().scores.isfinite().all()
    assert tiny.same_bytes(steer().vector, steer(positive=tuple(SIDES["positive"])).vector)
