"""The Python a page shows runs as it stands, and gives the page's own numbers."""

import contextlib
import io
from dataclasses import replace
from typing import Any

import pytest

from app import specs
from app.host import Job
from app.jobs import start
from app.state import Edit, Investigation, Recipe
from app.views import attention, lens, overview, steer

STATE = Investigation(model="induction", prompt="fbhadgecfbhad", target="g", foil="a")
RECIPE = Recipe(("abcdab", "efghef", "cdabcd"), ("abcdef", "efghab", "cdabgh"), 0)
PLANS = (
    (),
    (Edit("scale", "blocks.1.attn.hook_z", heads=(0,), positions=(12,), factor=0.5),),
    (Edit("steer", RECIPE.site, strength=0.5, recipe=RECIPE),),
)


@pytest.fixture(scope="module")
def ask():
    run = start()

    def answer(kind: Any, state: Investigation, *more: Any) -> Any:
        asked = (state.target, state.foil, state.pos) if kind in FULL else ()
        spec = kind(state.model, state.prompt, *asked, state.active, *more)
        return run(spec, Job(spec))

    return answer


FULL: tuple[Any, ...] = (specs.Read, specs.Lens, specs.Trajectory, specs.Components, specs.Dose)


def execute(code: str) -> tuple[dict[str, Any], str]:
    names: dict[str, Any] = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, names)
    return names, said.getvalue()


@pytest.mark.parametrize("plan", PLANS)
def test_the_overviews_code_gives_its_numbers(ask, plan):
    state = replace(STATE, plan=plan)
    reading = ask(specs.Read, state)
    view, _ = overview.next_tokens(reading, state)
    _, said = execute(view.foot.code)
    assert said.splitlines()[0] == f"{reading.top[0].prob:.3f} {reading.top[0].text!r}"
    path = ask(specs.Trajectory, state)
    names, _ = execute(overview.by_layer(path, state)[0].foot.code)
    assert names["reading"].ranks[-1, -1].tolist()[0] + 1 == path.target_rank[-1]


def test_the_components_code_gives_the_scores(ask):
    scores = ask(specs.Components, STATE)
    names, _ = execute(overview.components(scores, STATE)[0].foot.code)
    assert float(names["scores"].scores.sum()) == pytest.approx(scores.total, abs=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_the_lens_and_attention_code_runs(ask, plan):
    state = replace(STATE, plan=plan)
    names, _ = execute(lens.lens(ask(specs.Lens, state), state)[0].foot.code)
    assert names["reading"].axes[1].name == "pos"
    mosaic, pattern = ask(specs.Attention, state), ask(specs.Head, state, 1, 0)
    names, _ = execute(attention.head(pattern, mosaic, None, state)[0].foot.code)
    assert names["pattern"].numpy() == pytest.approx(pattern.pattern, abs=1e-6)


def test_the_steering_code_gives_the_texts_and_the_curve(ask):
    state = replace(STATE, steering=replace(STATE.steering, strength=1.0, new_tokens=4))
    twin = specs.Twin("induction", "abcdefgab", (), RECIPE, 1.0, 4, 0.7, 0)
    run = start()
    result: Any = run(twin, Job(twin))
    card: Any = run(specs.Direct("induction", RECIPE), Job(twin))
    names, _ = execute(steer.report(result, card, state, RECIPE).foot.code)
    assert names["both"].texts == ("".join(result.base), "".join(result.steered))
    dose = ask(specs.Dose, state, RECIPE, steer.STRENGTHS)
    _, said = execute(steer.dosed(dose, state, RECIPE).foot.code)
    assert said.startswith("tensor([")
