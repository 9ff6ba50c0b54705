"""Every page as a script, on the built-in model: something computed, no exception, no click."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import TextInput

import app
from app.desk import STATE
from app.frame import _packed
from app.process import pages
from app.specs import Pack
from app.state import Edit, Investigation, Recipe, digest, to_query
from workbench.attribution.known_truth import induction

SCRIPT = Path(app.__file__).parent / "script" / "ui.py"
STATE_OF_LETTERS = Investigation(model="induction", prompt="fbhadgecfbhad", target="g", foil="a")
NAMES = sorted(pages())
RECIPE = Recipe(("abcdab", "efghef"), ("abcdef", "efghab"), 0)


def screen(name: str = "overview", state: Investigation = STATE_OF_LETTERS) -> AppTest:
    test = AppTest.from_file(str(SCRIPT), default_timeout=30)
    for key, value in to_query(state).items():
        test.query_params[key] = value
    test.session_state["going"] = name
    return test.run()


def field(test: AppTest, label: str) -> TextInput:
    """The text field of that label."""
    (found,) = (one for one in test.text_input if one.label == label)
    return found


def written(test: AppTest) -> list[str]:
    """What a browser shows in the fields of the frame that it draws for the first time."""
    fields = [field(test, label) for label in ("Prompt", "Target", "Foil", "Another model")]
    assert [one.value for one in fields] == [one.proto.default for one in fields]
    return [one.proto.default for one in fields]


def drawn(test: AppTest) -> list[str]:
    """The keys of the components on the screen."""
    return [str(element.proto.id).rsplit("-", 1)[-1] for element in test.get("bidi_component")]


def shown(test: AppTest) -> str:
    """All that was sent to components, as text."""
    return " ".join(str(element.proto) for element in test.get("bidi_component"))


pytestmark = pytest.mark.usefixtures("opened", "nothing_pulled")


@pytest.fixture(scope="module")
def nothing_pulled():
    """A machine without the default model, so that nothing here needs a download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.jobs.about.is_present", lambda _: False)
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_something_computed_without_a_click(name):
    test = screen(name)
    assert not test.exception
    assert len(drawn(test)) > 4
    assert "+10.0" in shown(test)  # the live metric, exact by construction


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_a_check(name):
    assert '"good"' in shown(screen(name)).replace("\\", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_works_under_a_plan(name):
    cut = Edit("zero", "blocks.1.attn.hook_z", heads=(0,))
    test = screen(name, replace(STATE_OF_LETTERS, plan=(cut,)))
    assert not test.exception
    assert "ablate L1H0" in shown(test)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "edit",
    [
        Edit("zero", "blocks.0.attn.hook_z", heads=(0,), positions=(50,)),
        Edit("steer", RECIPE.site, positions=(50, 51), recipe=RECIPE),
    ],
    ids=["ablate", "steer"],
)
def test_a_page_says_of_an_edit_beyond_the_prompt_that_it_acts_on_nothing(name, edit):
    test = screen(name, replace(STATE_OF_LETTERS, plan=(edit,)))
    assert not test.exception
    assert '"error"' not in shown(test).replace("\\", "")
    assert "acts on nothing" in shown(test)
    assert "the 13 tokens read" in shown(test)
    assert "+10.0" in shown(test)


def test_the_address_says_what_is_shown():
    state = replace(STATE_OF_LETTERS, pos=5, head=(1, 0))
    test = screen("attention", state)
    assert dict(test.query_params) == to_query(state)
    assert test.session_state[STATE] == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "is empty"),
        ({"prompt": "a" * 99}, "reads at most 16"),
        ({"prompt": "hello world"}, "reads the letters"),
        ({"target": "gg"}, "must be one token"),
        ({"target": "g", "foil": "g"}, "another token than the target"),
        ({"plan": (Edit("zero", "blocks.9.attn.hook_z"),)}, "blocks.9.attn.hook_z"),
        ({"plan": (Edit("zero", "nonsense"),)}, "nonsense"),
    ],
)
def test_what_the_user_can_mend_is_a_message(change, message):
    test = screen(state=replace(STATE_OF_LETTERS, **change))
    assert not test.exception
    assert message in shown(test)


def test_a_plan_that_cannot_run_can_still_be_taken_back():
    test = screen(state=replace(STATE_OF_LETTERS, plan=(Edit("zero", "blocks.9.attn.hook_z"),)))
    assert "ablate L9" in shown(test)


def test_a_broken_link_is_a_message():
    test = AppTest.from_file(str(SCRIPT), default_timeout=30)
    test.query_params["pos"] = "nonsense"
    test.query_params["m"] = "induction"
    test.run()
    assert not test.exception
    assert "could not be read" in shown(test)


def test_a_link_beyond_the_pages_own_controls_is_a_message():
    test = AppTest.from_file(str(SCRIPT), default_timeout=30)
    for key, value in {**to_query(STATE_OF_LETTERS), "steer": '{"strength":10}'}.items():
        test.query_params[key] = value
    test.session_state["going"] = "steer"
    test.run()
    assert not test.exception
    assert "strength must be from -3 to 3" in shown(test)


def test_a_strength_between_the_steps_is_kept():
    steering = replace(STATE_OF_LETTERS.steering, strength=0.6)
    test = screen("steer", replace(STATE_OF_LETTERS, steering=steering))
    assert not test.exception
    assert test.select_slider(key="steer-strength").value == 0.6
    assert "\u22120.75" in test.select_slider(key="steer-strength").options


def test_a_model_of_one_layer_has_no_layer_to_choose():
    def script():
        from app.pages.steer import _layer
        from app.state import Recipe

        _layer(1, Recipe(("a",), ("b",), 0))

    test = AppTest.from_function(script).run()
    assert not test.exception
    assert not test.slider


def test_a_new_prompt_is_read_and_the_old_answer_forgotten():
    test = screen()
    field(test, "Prompt").set_value("abcdab").run()
    assert not test.exception
    state = test.session_state[STATE]
    assert (state.prompt, state.target, state.foil) == ("abcdab", None, None)
    assert "top choices" in shown(test)


def test_the_fields_show_the_investigation_on_every_page():
    test = screen()
    for name in (*NAMES, "overview", "steer", "overview"):
        test.session_state["going"] = name
        test.run()
        assert written(test) == ["fbhadgecfbhad", "g", "a", "induction"], name


def test_the_fields_show_an_example_that_was_picked():
    test = screen()
    test.button(key="example-1").click().run()
    assert written(test) == ["hgfedcbahgf", "e", "d", "induction"]


def test_a_target_can_be_typed():
    test = screen()
    field(test, "Target").set_value("b").run()
    assert test.session_state[STATE].target == "b"
    assert not test.exception


def test_a_head_can_be_ablated_and_the_metric_says_what_it_did():
    test = screen("attention", replace(STATE_OF_LETTERS, head=(1, 0)))
    test.button(key="head-ablate").click().run()
    assert not test.exception
    assert test.session_state[STATE].plan == (Edit("zero", "blocks.1.attn.hook_z", heads=(0,)),)
    assert "with 1 intervention" in shown(test)


def test_a_text_that_cannot_be_continued_is_a_message_and_asked_once(opened):
    steering = replace(STATE_OF_LETTERS.steering, prompt="xyz")
    test = screen("steer", replace(STATE_OF_LETTERS, steering=steering))
    assert not test.exception
    assert "reads the letters" in shown(test)
    lanes = {key: job.id for key, job in opened._lanes.items() if key.endswith("/twin")}
    test.run()
    assert "reads the letters" in shown(test)
    assert {key: job.id for key, job in opened._lanes.items() if key.endswith("/twin")} == lanes


def test_leaving_a_page_cancels_what_only_it_wanted(opened, monkeypatch):
    left: list[str] = []
    monkeypatch.setattr(opened, "clear", left.extend)
    test = screen("steer")
    assert left == []
    test.session_state["going"] = "lens"
    test.run()
    assert {lane.rsplit("/")[-1] for lane in left} == {"direction", "twin", "dose"}


def test_a_click_wins_over_an_address_the_browser_had_not_replaced_yet():
    test = screen("attention", replace(STATE_OF_LETTERS, head=(1, 0)))
    test.query_params["pos"] = "3"
    test.button(key="head-ablate").click().run()
    state = test.session_state[STATE]
    assert (state.pos, len(state.plan)) == (None, 1)
    test.query_params["pos"] = "3"  # and without a click, it came from outside
    test.run()
    assert test.session_state[STATE].pos == 3


def test_steering_joins_the_plan():
    test = screen(
        "steer",
        replace(STATE_OF_LETTERS, steering=replace(STATE_OF_LETTERS.steering, strength=0.5)),
    )
    test.button(key="steer-add").click().run()
    assert not test.exception
    (edit,) = test.session_state[STATE].plan
    assert (edit.op, edit.strength) == ("steer", 0.5)
    assert (test.button(key="steer-add").label, test.button(key="steer-add").disabled) == (
        "In the plan",
        True,
    )
    test.select_slider(key="steer-strength").set_value(1.0).run()
    assert test.button(key="steer-add").label == "Change in plan"
    test.button(key="steer-add").click().run()
    assert [edit.strength for edit in test.session_state[STATE].plan] == [1.0]


def test_a_direction_in_the_plan_leaves_the_steer_pages_own_comparison_alone():
    def columns(test: AppTest) -> str:
        (twin,) = (e.proto for e in test.get("bidi_component") if e.proto.id.endswith("-twin"))
        return str(json.loads(twin.json)["columns"])

    steering = replace(STATE_OF_LETTERS.steering, strength=0.5, new_tokens=3)
    test = screen("steer", replace(STATE_OF_LETTERS, steering=steering))
    before = columns(test.run())
    assert "Baseline" in before
    test.button(key="steer-add").click().run()
    assert columns(test.run()) == before


def test_the_default_model_is_replaced_by_the_built_in_one_where_it_is_missing():
    test = AppTest.from_file(str(SCRIPT), default_timeout=30)
    test.run()
    assert not test.exception
    assert test.session_state[STATE].model == "induction"
    assert "is not on this machine" in shown(test)


def test_the_command_line_says_which_model_comes_first(monkeypatch):
    monkeypatch.setenv("WORKBENCH_MODEL", "induction")
    test = AppTest.from_file(str(SCRIPT), default_timeout=30)
    test.run()
    assert not test.exception
    assert (test.session_state[STATE].model, test.session_state[STATE].target) == ("induction", "g")
    assert "is not on this machine" not in shown(test)


def test_the_plan_can_be_taken_along(opened):
    assert not screen().get("download_button")
    cut = Edit("zero", "blocks.1.attn.hook_z", heads=(0,))
    test = screen(state=replace(STATE_OF_LETTERS, plan=(cut,)))
    assert not test.exception
    (button,) = test.get("download_button")
    assert button.proto.label == "Take along"
    assert _packed(opened, Pack("induction", (cut,)))[:2] == b"PK"
    with pytest.raises(RuntimeError, match=r"blocks\.0\.nonsense"):
        _packed(opened, Pack("induction", (Edit("zero", "blocks.0.nonsense"),)))


def test_a_link_to_another_model_is_a_message_and_loads_nothing(monkeypatch):
    monkeypatch.setattr("workbench.load", lambda name: pytest.fail(f"loads {name}"))
    test = AppTest.from_file(str(SCRIPT), default_timeout=30)
    test.query_params["m"] = "docs"
    test.run()
    assert not test.exception
    assert "only name a model that is on this machine" in shown(test)


def test_a_mistyped_model_takes_nothing_away():
    cut = Edit("zero", "blocks.1.attn.hook_z", heads=(0,))
    state = replace(STATE_OF_LETTERS, plan=(cut,), pos=9)
    test = screen(state=state)
    field(test, "Another model").set_value("no-such-model").run()
    assert not test.exception
    assert "No model named" in shown(test)
    assert "What follows is still induction" in shown(test)
    assert test.session_state[STATE] == state
    field(test, "Prompt").set_value("abcdab").run()
    assert "No model named" not in shown(test)


def test_another_model_starts_without_what_belonged_to_the_last(monkeypatch, tmp_path):
    monkeypatch.setattr("workbench.load", lambda _: induction.build().model)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    cut = Edit("zero", "blocks.1.attn.hook_z", heads=(0,))
    test = screen(state=replace(STATE_OF_LETTERS, plan=(cut,), pos=9))
    field(test, "Another model").set_value("/a/folder").run()
    assert not test.exception
    state = test.session_state[STATE]
    assert (state.model, state.plan, state.pos) == ("/a/folder", (), None)
    assert [file.parent.name for file in tmp_path.rglob("*.json")] == ["investigations"]
    assert dict(test.query_params) == {"s": digest(state)}


def test_another_model_brings_a_prompt_it_can_read():
    test = screen(state=Investigation(model="induction"))
    assert not test.exception
    assert test.session_state[STATE].prompt == "fbhadgecfbhad"
