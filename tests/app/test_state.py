import json
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import StateError, decode, encode
from app.state import (
    SHORT,
    Edit,
    Investigation,
    Recipe,
    Steering,
    digest,
    from_json,
    from_query,
    to_json,
    to_query,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
index = st.integers(0, 200)
strength = st.floats(-10, 10, allow_nan=False)
texts = st.lists(text, max_size=3).map(tuple)
JOY = Recipe(("good",), ("bad",), 14)
recipes = st.builds(Recipe, positive=texts, negative=texts, layer=index)
changes = st.builds(
    Edit,
    op=st.sampled_from(["zero", "scale"]),
    site=st.sampled_from(["blocks.3.attn.hook_z", "blocks.0.hook_mlp_out"]),
    heads=st.lists(index, max_size=3).map(tuple),
    positions=st.lists(index, max_size=3).map(tuple),
    factor=strength,
    strength=strength,
)
steers = st.builds(
    lambda recipe, strength: Edit("steer", recipe.site, strength=strength, recipe=recipe),
    recipes,
    strength,
)
edits = changes | steers
investigations = st.builds(
    Investigation,
    model=st.sampled_from(["smollm2-135m-instruct", "induction"]),
    prompt=text,
    target=st.none() | text.filter(bool),
    foil=st.none() | text.filter(bool),
    pos=st.none() | index,
    plan=st.lists(edits, max_size=3).map(tuple),
    bypass=st.booleans(),
    cell=st.none() | st.tuples(index, index),
    head=st.none() | st.tuples(index, index),
    show_sink=st.booleans(),
    steering=st.builds(
        Steering,
        positive=texts,
        negative=texts,
        layer=st.none() | index,
        strength=st.floats(-3, 3),
        new_tokens=st.integers(1, 200),
    ),
)


@given(investigations)
def test_json_gives_the_same_investigation_back(state):
    assert from_json(to_json(state)) == state


@given(investigations)
def test_a_link_gives_the_same_investigation_back(state):
    files = {digest(state): to_json(state)}
    query = dict(parse_qsl(urlencode(to_query(state)), keep_blank_values=True))
    assert (from_query(query, files.get) or Investigation()) == state


@given(investigations)
def test_a_link_stays_short(state):
    query = to_query(state)
    assert sum(len(k) + len(v.encode()) for k, v in query.items()) <= SHORT or "s" in query


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | text,
        lambda x: st.lists(x) | st.dictionaries(text, x),
    )
)
def test_whatever_a_link_holds_is_an_investigation_or_a_message(data):
    try:
        found = decode(Investigation, data)
    except StateError:
        return
    assert decode(Investigation, encode(found)) == found


def test_the_shortest_link_names_the_model():
    assert to_query(Investigation()) == {"m": "smollm2-135m-instruct"}
    assert from_query({"m": "smollm2-135m-instruct"}, {}.get) == Investigation()
    assert from_query({}, {}.get) is None


def test_a_model_on_this_machine_is_never_named_in_a_link():
    state = Investigation(model="/home/me/secret-model")
    assert to_query(state) == {"s": digest(state)}
    for name in ("../../etc/passwd", "docs", "all-minilm-l6-v2", "cities", "owner/name"):
        with pytest.raises(StateError, match="only name a model that is on this machine"):
            from_query({"m": name}, {}.get)


def test_a_model_that_is_here_by_name_can_be_in_a_link():
    state = Investigation(model="pulled")
    query = to_query(state, lambda name: name == "pulled")
    assert query == {"m": "pulled"}
    assert from_query(query, {}.get, lambda name: name == "pulled") == state


@pytest.mark.parametrize("name", ["../../etc/passwd", "x" * 64, "", "A" * 64])
def test_a_link_names_no_file(name):
    def stored(_: str) -> str:
        raise AssertionError("asked for a file")

    with pytest.raises(StateError, match="not on this machine"):
        from_query({"s": name}, stored)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be an object"),
        ('{"colour": 1}', "has no 'colour'"),
        ('{"pos": "3"}', "pos must be a whole number"),
        ('{"pos": true}', "pos must be a whole number"),
        ('{"cell": [1]}', "must have 2 items"),
        ('{"plan": [{"op": "explode", "site": "x"}]}', "must be one of zero, scale, steer"),
        ('{"plan": [{"op": "zero"}]}', "lacks 'site'"),
        (
            '{"plan": [{"op": "steer", "site": "blocks.3.hook_resid_post"}]}',
            "has a recipe if it st",
        ),
        (
            (
                '{"plan": [{"op": "steer", "site": "blocks.4.hook_resid_post", "recipe": '
                '{"layer": 3, "negative": ["a"], "positive": ["b"]}}]}'
            ),
            "The recipe steers blocks.3.hook_resid_post, not blocks.4",
        ),
        (
            (
                '{"plan": [{"op": "steer", "site": "blocks.3.hook_resid_post", "heads": [0], '
                '"recipe": {"layer": 3, "negative": ["a"], "positive": ["b"]}}]}'
            ),
            r"which has no heads; got heads \[0\]. Leave them out",
        ),
        ('{"steering": {"strength": 1e999}}', "must be a number"),
        ('{"steering": {"strength": 10}}', "strength must be from -3 to 3, got 10"),
        ('{"steering": {"new_tokens": 500}}', "new_tokens must be from 1 to 200"),
        ('{"steering": {"new_tokens": 0}}', "new_tokens must be from 1 to 200"),
        ('{"steering": {"temperature": -1}}', "temperature must be from 0 to 2"),
        ('{"steering": {"seed": -1}}', "seed must be from 0"),
        ('{"steering": {"layer": -1}}', "layer must be from 0"),
    ],
)
def test_a_malformed_investigation_says_where(text, message):
    with pytest.raises(StateError, match=message):
        from_json(text)


def test_another_prompt_drops_what_belonged_to_the_old_one():
    state = Investigation(pos=3, cell=(1, 2), plan=(Edit("zero", "blocks.0.hook_mlp_out"),))
    asked = state.ask("The capital of France is")
    assert (asked.target, asked.foil, asked.pos, asked.cell) == (None, None, None, None)
    assert asked.plan == state.plan
    assert state.ask(state.prompt) is state


def test_plan_edits():
    one, two = Edit("zero", "blocks.0.hook_mlp_out"), Edit("zero", "blocks.1.hook_mlp_out")
    state = Investigation().add(one).add(two).add(one)
    assert state.plan == (one, two)
    assert state.move(1, 0).plan == (two, one)
    assert state.remove(0).plan == (two,)


def test_a_direction_is_in_the_plan_once():
    cut = Edit("zero", "blocks.0.hook_mlp_out")
    here = Edit("steer", JOY.site, positions=(2,), strength=1.0, recipe=JOY)
    state = Investigation(plan=(here,)).steer(JOY, 0.5).add(cut).steer(JOY, -1.0)
    assert [edit.strength for edit in state.plan] == [1.0, -1.0, 1.0]
    assert state.besides(JOY) == (here, cut)
    assert replace(state, bypass=True).besides(JOY) == ()


@pytest.mark.parametrize(
    ("edit", "label"),
    [
        (Edit("zero", "blocks.9.attn.hook_z", heads=(6,)), "ablate L9H6"),
        (Edit("zero", "blocks.4.hook_mlp_out", positions=(2,)), "ablate L4 MLP at 2"),
        (Edit("scale", "blocks.4.hook_attn_out", factor=0.5), "scale L4 attention × 0.5"),
        (Edit("steer", JOY.site, strength=-1.5, recipe=JOY), "steer L14 residual −1.5 gaps"),
    ],
)
def test_a_chip_says_what_it_does_and_where(edit, label):
    assert edit.label == label


def test_json_is_canonical():
    state = Investigation(pos=3, head=(1, 2))
    assert to_json(state) == json.dumps(
        json.loads(to_json(state)), sort_keys=True, separators=(",", ":")
    )
