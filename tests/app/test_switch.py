"""Going over to another model and back: nothing that was asked of a model is lost."""

from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from app.desk import STATE
from app.state import Edit, Investigation
from tests import tiny
from tests.app.test_pages import SCRIPT, field, shown

READER = "/a/reader"  # reads any text, byte by byte
OTHER = "/another/reader"
CUT = Edit("zero", "blocks.0.attn.hook_z", heads=(1,))
ASKED = Investigation(
    model=READER, prompt="The capital of France is", target="P", foil="L", pos=9, plan=(CUT,)
)
LETTERS = ("induction", "fbhadgecfbhad", "g", "a")

pytestmark = pytest.mark.usefixtures("opened", "loaded")


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """Two models that read any text; long links rest in a folder of the test."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    model = tiny.model()
    monkeypatch.setattr("workbench.load", lambda _: model)


def screen(state: Investigation, name: str = "overview") -> AppTest:
    test = AppTest.from_file(str(SCRIPT), default_timeout=30)
    test.session_state[STATE] = state
    test.session_state["going"] = name
    return test.run()


def choose(test: AppTest, model: str) -> Investigation:
    field(test, "Another model").set_value(model).run()
    assert not test.exception
    return test.session_state[STATE]


def asked(state: Investigation) -> tuple[str, str, str | None, str | None]:
    return state.model, state.prompt, state.target, state.foil


@pytest.mark.parametrize("name", ["overview", "lens", "attention", "steer"])
def test_a_prompt_the_other_model_cannot_read_waits_for_its_own(name):
    test = screen(ASKED, name)
    assert asked(choose(test, "induction")) == LETTERS
    assert "induction cannot read your prompt" in shown(test)
    assert f"comes back with {READER}" in shown(test)
    assert "reads the letters" not in shown(test)
    assert field(test, "Prompt").value == "fbhadgecfbhad"
    assert choose(test, READER) == ASKED
    assert "cannot read" not in shown(test)


def test_a_prompt_beyond_the_other_models_context_waits_too():
    test = screen(replace(ASKED, prompt="a" * 20, pos=None, plan=()))
    assert asked(choose(test, "induction")) == LETTERS
    assert choose(test, READER).prompt == "a" * 20


def test_each_of_the_two_models_keeps_its_own_prompt():
    test = screen(ASKED)
    choose(test, "induction")
    field(test, "Prompt").set_value("abcdab").run()
    assert "cannot read" not in shown(test)
    assert choose(test, READER) == ASKED
    assert choose(test, "induction").prompt == "abcdab"
    assert choose(test, READER) == ASKED


def test_what_was_kept_comes_back_past_a_third_model():
    test = screen(ASKED)
    choose(test, "induction")
    assert choose(test, OTHER).prompt == "fbhadgecfbhad"
    assert choose(test, READER) == ASKED


def test_a_prompt_both_models_read_goes_along():
    test = screen(ASKED)
    state = choose(test, OTHER)
    assert asked(state) == (OTHER, *asked(ASKED)[1:])
    assert (state.plan, state.pos) == ((), None)
    field(test, "Prompt").set_value("Another").run()
    assert choose(test, READER).prompt == "Another"


def test_texts_of_steering_that_the_other_cannot_read_wait_with_the_prompt():
    steering = replace(ASKED.steering, positive=("good",), negative=("bad",), prompt="I am")
    state = replace(ASKED, steering=steering)
    test = screen(state, "steer")
    choose(test, "induction")
    assert "reads the letters" not in shown(test)
    assert choose(test, READER) == state
