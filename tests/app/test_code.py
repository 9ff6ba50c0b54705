"""The Python a page shows runs as it stands, and gives the page's own numbers."""

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app import specs
from app.host import Job
from app.jobs import start
from app.results import Answer
from app.state import Edit, Investigation, Recipe
from app.views import attention, lens, overview, steer

STATE = Investigation(model="induction", prompt="fbhadgecfbhad", target="g", foil="a")
RECIPE = Recipe(("abcdab", "efghef", "cdabcd"), ("abcdef", "efghab", "cdabgh"), 0)
STEER = Edit("steer", RECIPE.site, strength=0.5, recipe=RECIPE)
HALF = Edit("zero", "blocks.1.attn.hook_z", heads=(0,), positions=(9,), strength=0.5)
LATE = Edit("scale", "blocks.0.attn.hook_z", positions=(40,), factor=0.5)  # never acts
BEYOND = Edit("steer", RECIPE.site, positions=(50,), strength=0.5, recipe=RECIPE)  # nor does this
STATES = {
    "plain": STATE,
    "earlier": replace(STATE, pos=9),
    "planned": replace(STATE, plan=(HALF, LATE)),
    "steered and earlier": replace(STATE, pos=9, plan=(STEER, HALF)),
    "steered beyond the prompt": replace(STATE, plan=(BEYOND,)),
    "bypassed": replace(STATE, plan=(HALF,), bypass=True),
}
FULL: tuple[Any, ...] = (specs.Read, specs.Lens, specs.Trajectory, specs.Components, specs.Dose)
every = pytest.mark.parametrize("state", STATES.values(), ids=STATES)


@pytest.fixture(scope="module")
def ask():
    run = start()

    def answer(kind: Any, state: Investigation, *more: Any) -> Any:
        asked = (state.target, state.foil, state.pos) if kind in FULL else ()
        spec = kind(state.model, state.prompt, *asked, state.active, *more)
        return run(spec, Job(spec))

    return answer


def execute(code: str) -> tuple[dict[str, Any], str]:
    names: dict[str, Any] = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, names)
    assert said.getvalue(), "a script that says nothing"
    return names, said.getvalue()


@every
def test_the_next_tokens_are_the_pages(ask, state):
    reading = ask(specs.Read, state)
    names, said = execute(overview.next_tokens(reading, state)[0].foot.code)
    assert said.splitlines()[0] == f"{reading.top[0].prob:.3f} {reading.top[0].text!r}"
    assert names["best"].values.tolist() == pytest.approx([c.prob for c in reading.top], abs=1e-6)


@every
def test_the_ranks_by_layer_are_the_pages(ask, state):
    path = ask(specs.Trajectory, state)
    names, _ = execute(overview.by_layer(path, state)[0].foot.code)
    ranks = 1 + names["reading"].ranks[:, 0].numpy()  # layer token
    reading = ask(specs.Read, state)
    assert ranks[-1].tolist() == [reading.target_rank, reading.foil_rank]
    np.testing.assert_array_equal(ranks, np.stack([path.target_rank, path.foil_rank], 1))


@every
def test_the_parts_are_the_pages(ask, state):
    scores = ask(specs.Components, state)
    names, _ = execute(overview.components(scores, state)[0].foot.code)
    found = names["scores"].scores
    assert float(found.sum()) == pytest.approx(scores.total, abs=1e-5)
    heads = [float(v) for v, h in zip(scores.values, scores.heads, strict=True) if h == 0]
    assert found[1].tolist() == pytest.approx(heads, abs=1e-5)  # row 1 is head 0 of each layer


@every
def test_the_lens_is_the_pages(ask, state):
    reading = ask(specs.Lens, state)
    names, _ = execute(lens.lens(reading, state)[0].foot.code)
    found = names["reading"].top_probabilities[:, list(reading.positions), 0]
    np.testing.assert_allclose(found.numpy(), reading.probs[:, :, 0], atol=1e-6)


@every
def test_the_head_is_the_pages(ask, state):
    mosaic, pattern = ask(specs.Attention, state), ask(specs.Head, state, 1, 0)
    names, said = execute(attention.head(pattern, mosaic, None, state)[0].foot.code)
    assert said.startswith("tensor([[1.")  # the first token can only look at itself
    assert names["pattern"].numpy() == pytest.approx(pattern.pattern, abs=1e-6)


@pytest.mark.parametrize("plan", [(), (HALF, STEER), (BEYOND,)])
def test_the_texts_are_the_pages(ask, plan):
    state = replace(STATE, pos=9, plan=plan)
    state = replace(state, steering=replace(STATE.steering, strength=1.0, new_tokens=4))
    rest, run = state.besides(RECIPE), start()
    twin = specs.Twin("induction", "abcdefgab", rest, RECIPE, 1.0, 4, 0.7, 0)
    result: Any = run(twin, Job(twin))
    card: Any = run(specs.Direct("induction", RECIPE), Job(twin))
    names, _ = execute(steer.report(result, card, state, RECIPE).foot.code)
    assert names["both"].texts == ("".join(result.base), "".join(result.steered))


@every
def test_the_doses_are_the_pages(ask, state):
    alone = replace(state, plan=state.besides(RECIPE), bypass=False)
    dose = ask(specs.Dose, alone, RECIPE, steer.STRENGTHS)
    names, said = execute(steer.dosed(dose, state, RECIPE).foot.code)
    assert said.startswith("tensor([")
    logits = names["trace"].answer_logits
    found = logits[:, names["target"]] - logits[:, names["foil"]]
    np.testing.assert_allclose(found.numpy(), dose.metric, atol=1e-5)


def test_a_token_that_no_text_names_is_named_by_its_id(ask):
    path = ask(specs.Trajectory, STATE)
    unspelt = replace(path.answer, target="\\xf0", target_key=6, foil_key=0)
    names, _ = execute(overview.by_layer(replace(path, answer=unspelt), STATE)[0].foot.code)
    assert names["reading"].ranks.shape[-1] == 2
    assert isinstance(unspelt, Answer)
    dose = replace(ask(specs.Dose, STATE, RECIPE, steer.STRENGTHS), answer=unspelt)
    names, _ = execute(steer.dosed(dose, STATE, RECIPE).foot.code)
    assert (names["target"], names["foil"]) == (6, 0)
