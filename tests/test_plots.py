"""Any result as a figure: its numbers, its axes, and no markup from tokens."""

from typing import Any

import pytest

from workbench import plots
from workbench.attribution import METHODS
from workbench.attribution.known_truth import induction
from workbench.core.errors import OptionError

TRUTH = induction.build()


def test_a_two_axis_result_is_a_heat_map_with_layers_upward():
    scores = METHODS["direct_logit_attribution"](TRUTH.model, TRUTH.contrast)
    drawn = plots.figure(scores, title="DLA")
    heat: Any = drawn.data[0]
    assert [len(heat.z), len(heat.z[0])] == [2, len(scores.axes[0].labels)]
    assert heat.z[1][1] == pytest.approx(float(scores.scores[1, 1]))
    assert drawn.layout.yaxis.title.text == "layer"
    assert "sum - metric" in drawn.layout.annotations[0].text


def test_a_one_axis_result_is_bars_coloured_by_sign():
    scores = METHODS["direct_logit_attribution"](TRUTH.model, TRUTH.contrast, axes=("component",))
    bars: Any = plots.figure(scores).data[0]
    assert list(bars.y) == pytest.approx(scores.scores.tolist())


def test_tokens_with_markup_stay_text():
    effects = METHODS["activation_patching"](TRUTH.model, TRUTH.contrast)
    drawn = plots.figure(effects, title="<b>x</b>")
    assert drawn.layout.title.text == "&lt;b&gt;x&lt;/b&gt;"


def test_values_of_another_shape_are_refused_by_name():
    effects = METHODS["activation_patching"](TRUTH.model, TRUTH.contrast)
    with pytest.raises(
        OptionError, match=r"values must be one of scores, per_example, base, donor"
    ):
        plots.figure(effects, values="nothing")
    with pytest.raises(OptionError, match=r"on one or two axes \(layer 2, pos 13\)"):
        plots.figure(effects, values="base")
