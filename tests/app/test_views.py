"""Results into figures and sentences, without a model: hand-made numbers, exact words."""

from dataclasses import replace

import numpy as np
import pytest

from app.results import (
    Answer,
    Candidate,
    ComponentScores,
    DirectionCard,
    DoseCurve,
    HeadPattern,
    Mosaic,
    Path,
    Quality,
    Reading,
    Receipt,
    TwinResult,
)
from app.state import Edit, Investigation, Recipe
from app.views import attention, frame, overview, steer
from app.views.figures import View
from app.views.words import Sentence

ANSWER = Answer(
    " Mary",
    " John",
    target_automatic=False,
    foil_automatic=False,
    target_key=" Mary",
    foil_key=" John",
)
MARY, JOHN = (
    Candidate(" Mary", 0.7, 0.9, 3.0, spelt=True),
    Candidate(" John", 0.2, 0.1, 1.0, spelt=True),
)
READING = Reading(
    tokens=("When", " Mary", "<script>"),
    pos=2,
    answer=ANSWER,
    before=3.41,
    after=None,
    target=MARY,
    foil=JOHN,
    target_rank=1,
    foil_rank=2,
    top=(MARY, JOHN),
    entropy=1.2,
    receipts=(),
    milliseconds=62.4,
    n_context=8192,
)
SCORES = ComponentScores(
    answer=ANSWER,
    names=("embedding", "L0H0", "L1H2", "L1 MLP"),
    layers=(None, 0, 1, 1),
    heads=(None, 0, 2, None),
    values=np.array([0.1, -0.5, 3.0, 0.81]),
    total=3.41,
    metric=3.41,
    source="a paper",
)
PATTERN = HeadPattern(
    tokens=("a", "b", "c"),
    layer=1,
    head=2,
    pattern=np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0.6, 0.3, 0.1]]),
    first=0,
    length=3,
    keys=np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]]),
    shares=np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0.6, 0.3, 0.1]]),
    key_texts=(("a", "b", "c"),) * 3,
)
MOSAIC = Mosaic(
    tokens=("a", "b", "c"),
    tiles=np.stack([np.stack([PATTERN.pattern] * 3)] * 2),
    besides=np.stack([np.stack([PATTERN.pattern * [0, 1, 1]] * 3)] * 2),
    pooled=1,
    sink=np.full((2, 3), 0.75),
    rowsum=1e-7,
)
TWIN = TwinResult(
    prompt="a",
    base=("b", "c"),
    steered=("b", "d"),
    divergence=np.array([0.1, 5.0]),
    base_perplexity=5.0,
    steered_perplexity=8.0,
    receipt=Receipt(2, 4, 1.5),
    identical=False,
    repeats=None,
    seconds=0.5,
)
CARD = DirectionCard(
    "blocks.1.hook_resid_post", 2.0, 0.4, 4, (Quality("p of chance", 0.3, "", ""),)
)
STATE = Investigation(plan=(Edit("zero", "blocks.1.attn.hook_z", heads=(2,)),))


def text(*sentences: Sentence) -> str:
    return " ".join("".join(span.text for span in sentence) for sentence in sentences)


def path(ranks: list[int]) -> Path:
    values = np.array(ranks)
    return Path(
        ("embed", "0", "1"), ANSWER, 1 / values, 1 / values, values, values, values == 1, 50, 0.0
    )


VIEWS: dict[str, View] = {
    "next": overview.next_tokens(READING, STATE)[0],
    "layers": overview.by_layer(path([30, 9, 1]), STATE)[0],
    "parts": overview.components(SCORES, STATE)[0],
    "head": attention.head(PATTERN, MOSAIC, SCORES, STATE)[0],
    "steer": steer.report(TWIN, CARD, STATE, Recipe(("a", "b"), ("c", "d"), 1)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_every_view_asks_answers_and_shows_how_far_to_trust_it(view):
    assert text(view.title).endswith("?")
    assert view.sentences
    assert view.foot.checks
    assert view.foot.method.endswith(".")
    assert view.foot.table.rows
    assert all(len(row) == len(view.foot.table.columns) for row in view.foot.table.rows)
    compile(view.foot.code, "code", "exec")


def test_the_live_metric_says_where_and_under_what():
    view = frame.bar_view(READING, Investigation())
    assert (view.before, view.after, text(view.how)) == ("+3.41", None, "after position 2")
    planned = replace(READING, after=0.87, receipts=(Receipt(1, 3, 0.5),))
    view = frame.bar_view(planned, STATE)
    assert (view.before, view.after) == ("+3.41", "+0.87")
    assert text(view.how) == "after position 2, with 1 intervention"
    assert (view.plan[0].label, view.plan[0].receipt) == ("ablate L1H2", "3 tokens")
    assert text(frame.bar_view(READING, replace(STATE, bypass=True)).how).endswith("plan bypassed")


def test_an_intervention_that_did_nothing_says_so():
    view = frame.bar_view(replace(READING, after=3.41, receipts=(Receipt(0, 0, 0.0),)), STATE)
    assert view.plan[0].receipt == "acts on nothing"


def test_next_tokens_are_told_and_marked():
    view, figure = overview.next_tokens(READING, STATE)
    assert (
        text(*view.sentences) == "The model says ·Mary next, with 70 %; ·John gets 20 % (rank 2)."
    )
    assert [row.tone for row in figure.rows] == ["target", "foil"]
    assert figure.rows[0].before is None
    _, figure = overview.next_tokens(replace(READING, after=1.0), STATE)
    assert (figure.rows[0].before, figure.most) == (0.9, 0.9)


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ([30, 9, 1], "·Mary has rank 9 after layer 0 and comes first only after layer 1."),
        ([30, 1, 1], "·Mary comes first after layer 0, to stay."),
        ([30, 2, 5], "·Mary never settles first; its best is rank 2, after layer 0."),
    ],
)
def test_the_layer_that_decides_is_told(ranks, told):
    assert text(*overview.by_layer(path(ranks), STATE)[0].sentences) == told


def test_a_tie_for_the_first_place_is_not_first():
    tied = replace(path([1, 1, 1]), target_alone=np.array([False, False, True]))
    told = text(*overview.by_layer(tied, STATE)[0].sentences)
    assert told == "·Mary has a tie for rank 1 after layer 0 and comes first only after layer 1."


def test_a_part_of_a_character_cannot_be_made_the_target():
    piece = replace(MARY, text="\\xf0", spelt=False)
    _, figure = overview.next_tokens(replace(READING, top=(MARY, piece)), STATE)
    assert [row.active for row in figure.rows] == [True, False]


def test_parts_are_ordered_by_size_and_can_be_taken_out():
    _, figure, order = overview.components(SCORES, STATE)
    assert [row.label for row in figure.rows] == ["L1H2", "L1 MLP", "L0H0", "embedding"]
    assert [row.active for row in figure.rows] == [True, True, True, False]
    assert overview.ablation(SCORES, order[0]) == STATE.plan[0]
    assert overview.ablation(SCORES, order[1]) == Edit("zero", "blocks.1.hook_mlp_out")


def test_parts_that_do_not_add_up_are_marked():
    view, _, _ = overview.components(replace(SCORES, total=3.0), STATE)
    assert not view.foot.checks[0].good


def test_the_future_is_blank_and_so_is_the_sink_until_it_is_asked_for():
    view, figure = attention.head(PATTERN, MOSAIC, SCORES, STATE)
    assert np.isnan(figure.values[0, 1:]).all()
    assert np.isnan(figure.values[:, 0]).all()
    assert figure.high == pytest.approx(0.3)
    assert figure.picked == (2, 1)
    assert "From c, the first token aside, it looks most at b with 30 %" in text(*view.sentences)
    assert "75 % of this head's attention rests on the first token, the attention sink" in text(
        *view.sentences
    )
    other, _ = attention.head(PATTERN, replace(MOSAIC, sink=MOSAIC.sink / 5), SCORES, STATE)
    assert "sink" not in text(*other.sentences)
    view, figure = attention.head(PATTERN, MOSAIC, SCORES, replace(STATE, show_sink=True))
    assert figure.values[2, 0] == pytest.approx(0.6)
    assert "From c it looks most at a with 60 %" in text(*view.sentences)


@pytest.mark.parametrize("pos", [None, -1, 99])
def test_a_position_that_is_not_there_is_the_last_everywhere(pos):
    view, figure = attention.head(PATTERN, MOSAIC, SCORES, replace(STATE, pos=pos))
    assert text(*view.sentences).startswith("From c, the first token aside, it looks most at b")
    assert figure.picked == (2, 1)
    title, _, _ = attention.card(PATTERN, SCORES, replace(STATE, pos=pos))
    assert text(title) == "From position 2 c"


@pytest.mark.parametrize("head", [(-1, -5), (9, 0), (0, -1)])
def test_a_head_that_is_not_there_is_the_strongest(head):
    assert attention.picked(MOSAIC, SCORES, replace(STATE, head=head)) == (1, 2)


def test_a_mosaic_has_a_gutter_of_blank_cells():
    figure = attention.tiles(MOSAIC, SCORES, STATE)
    assert figure.values.shape == (2 * 4, 3 * 4)
    assert np.isnan(figure.values[3]).all()
    assert figure.picked == (1, 2)  # the head with the largest direct effect
    assert figure.marked == ((1, 2), (0, 0))


def test_of_a_long_prompt_only_the_first_token_is_hidden_not_its_cell():
    pooled = replace(MOSAIC, pooled=64, besides=np.full((2, 3, 3, 3), 0.4))
    figure = attention.tiles(pooled, SCORES, STATE)
    assert figure.values[1, 0] == pytest.approx(0.4)
    assert np.isnan(attention.tiles(MOSAIC, SCORES, STATE).values[1, 0])
    shown = attention.tiles(pooled, SCORES, replace(STATE, show_sink=True))
    assert shown.values[0, 0] == 1.0


def test_of_a_long_prompt_the_window_and_the_pooling_are_told():
    view, _ = attention.head(replace(PATTERN, first=97, length=100), MOSAIC, SCORES, STATE)
    assert "positions 97 to 99 of 100 are shown" in text(*view.sentences)
    assert "4 × 4 positions" in text(attention.mosaic_note(replace(MOSAIC, pooled=4)))


def test_a_text_that_repeats_or_drifts_is_told_with_what_to_do():
    def told(**fields: object) -> str:
        result = replace(TWIN, **fields)
        return text(*steer.report(result, CARD, STATE, Recipe((), (), 1)).sentences)

    assert "part after 1 token;" in told()
    assert "part at the first token" in told(steered=("x", "d"))
    assert "try" not in told()
    assert "repeats “ha ha” 3 times: try less" in told(repeats=("ha ha", 3))
    assert "dose is high" in told(steered_perplexity=50.0)
    assert "identical, token for token" in told(identical=True)


def test_the_comparison_says_what_else_is_in_the_plan():
    recipe = Recipe(("a", "b"), ("c", "d"), 1)
    state = STATE.steer(recipe, 0.5)
    assert steer.apart(state, recipe).plan == STATE.plan
    told = text(*steer.report(TWIN, CARD, state, recipe).sentences)
    assert "under the model without the direction (with 1 other intervention) is 5.00" in told
    assert steer.apart(state, recipe).name == "Without it, with the plan (1 intervention)"
    alone = Investigation().steer(recipe, 0.5)
    assert steer.apart(alone, recipe).name == "Baseline"
    assert "(with" not in text(*steer.report(TWIN, CARD, alone, recipe).sentences)


def test_a_direction_that_may_be_chance_is_marked():
    checks = steer.report(TWIN, CARD, STATE, Recipe((), (), 1)).foot.checks
    assert [check.good for check in checks if check.name == "p of chance"] == [False]


def test_a_direction_that_its_halves_disagree_about_is_marked():
    halves = replace(CARD, quality=(Quality("split-half cosine", -0.81, "", ""),))
    checks = steer.report(TWIN, halves, STATE, Recipe((), (), 1)).foot.checks
    assert [check.good for check in checks if check.name == "split-half cosine"] == [False]


def test_nothing_is_added_at_strength_0():
    still = replace(STATE, steering=replace(STATE.steering, strength=0.0))
    nothing = replace(TWIN, receipt=Receipt(0, 0, 0.0))
    first = steer.report(nothing, CARD, still, Recipe((), (), 1)).foot.checks[0]
    assert (first.value, first.note, first.good) == (
        "not added",
        "nothing to add at strength 0",
        True,
    )
    first = steer.report(nothing, CARD, STATE, Recipe((), (), 1)).foot.checks[0]
    assert not first.good


def test_a_metric_that_stays_has_no_axis_of_rounding_errors():
    dose = DoseCurve(
        ANSWER, np.array([0.0, 1.0]), np.array([10.0, 10.0002]), np.zeros(2), 10.0, 0.0
    )
    metric, moved = steer.dose_figure(dose, STATE.steering)
    assert all(len(words) <= 6 for _, words in (*metric.ticks, *moved.ticks))


def test_underlines_grow_with_the_divergence_and_stop():
    assert steer.weights(np.array([0.0, 2.0, 9.0])) == [0.0, 0.5, 1.0]
    assert steer.parting(("a", "b"), ("a", "c")) == 1
    assert steer.parting(("a",), ("a",)) is None
