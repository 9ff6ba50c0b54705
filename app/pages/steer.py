"""Steer: two sets of texts make a direction; the model writes with it and without it."""

from dataclasses import replace
from typing import Any, Final

import streamlit as st

from app.components.foot import foot
from app.components.lines import lines
from app.components.prose import prose
from app.components.twin import Column, Piece, twin
from app.desk import Desk, become, change, current
from app.host import State
from app.page import Page
from app.results import DirectionCard, DoseCurve, TwinResult
from app.specs import Direct, Dose, Twin
from app.state import Edit, Recipe, Steering
from app.views import steer as views
from app.views.words import plain, say, signed

MOST: Final = 3.0  # gaps


def render(desk: Desk) -> None:
    """Controls, the two texts, then what happened and at what price."""
    steering = desk.state.steering
    recipe = _recipe(desk)
    title = st.container()
    _controls(desk, recipe)
    _texts(steering)
    card = desk.ask(
        Direct(desk.state.model, recipe),
        DirectionCard,
        view="direction",
        what="making the direction",
        height=160,
    )
    if card is None:
        return
    result = _twin(desk, recipe)
    dose = _dose(desk, recipe)
    with title:
        if result is None:
            words = "What does steering change, and at what price?"
            prose(views.direction_sentence(card), key="steer-title", kind="page", title=words)
        else:
            view = views.report(result, dose, card, desk.state, recipe)
            prose(*view.sentences, key="steer-title", kind="page", title=view.title)
    if result is not None:
        foot(view.foot, key="steer-foot")
    if dose is not None:
        _curves(dose, steering)


def _controls(desk: Desk, recipe: Recipe) -> None:
    steering = desk.state.steering
    strength, layer, tokens, noise, verb = st.columns(
        [2.2, 1.6, 1.1, 1.1, 1.2], gap="medium", vertical_alignment="bottom"
    )
    with strength:
        _keep("steer-strength", steering.strength)
        st.slider(
            "Strength, gaps", -MOST, MOST, step=0.25, key="steer-strength",
            on_change=_set, args=("strength", "steer-strength"),
            help="One gap takes the negative texts' mean to the positive texts' mean. 0 changes nothing.",
        )
    with layer:
        _keep("steer-layer", recipe.layer)
        st.slider(
            "Layer", 0, desk.about.n_layers - 1, key="steer-layer",
            on_change=_set, args=("layer", "steer-layer"),
            help="The direction is read and added at the end of this layer.",
        )
    with tokens:
        _keep("steer-tokens", steering.new_tokens)
        st.number_input(
            "New tokens", 1, 200, key="steer-tokens",
            on_change=_set, args=("new_tokens", "steer-tokens"),
        )
    with noise:
        _keep("steer-temperature", steering.temperature)
        st.number_input(
            "Temperature", 0.0, 2.0, step=0.1, key="steer-temperature",
            on_change=_set, args=("temperature", "steer-temperature"),
            help="0 always takes the likeliest token.",
        )
    with verb:
        st.button(
            "Add to plan", key="steer-add", type="primary", width="stretch",
            disabled=steering.strength == 0, on_click=_add, args=(recipe,),
            help="Keeps this direction in the plan, so every page shows the steered model.",
        )


def _texts(steering: Steering) -> None:
    with st.expander("The texts that make the direction", key="steer-texts", on_change="rerun") as box:
        if not box.open:
            return
        for column, (key, name) in zip(
            st.columns(2, gap="medium"),
            (("positive", "Positive texts, one per line"), ("negative", "Negative texts, one per line")),
            strict=True,
        ):
            lines_of = steering.positive if key == "positive" else steering.negative
            _keep(f"steer-{key}", "\n".join(lines_of))
            column.text_area(
                name, key=f"steer-{key}", height=130, on_change=_set_texts, args=(key,)
            )
        st.button("Another draw of the noise", key="steer-seed", on_click=_reseed)


def _twin(desk: Desk, recipe: Recipe) -> TwinResult | None:
    state, steering = desk.state, desk.state.steering
    spec = Twin(
        model=state.model,
        prompt=state.prompt,
        plan=state.active,
        recipe=recipe,
        strength=steering.strength,
        new_tokens=steering.new_tokens,
        temperature=steering.temperature,
        seed=steering.seed,
    )
    job = desk.submit(spec, view="twin")
    result = job.result if isinstance(job.result, TwinResult) else None
    failed = job.failure.message if job.failure else ""
    if failed:
        prose(say(failed), key="twin-error", kind="error")
        return None
    columns = Column("Baseline"), Column(f"Steered {signed(steering.strength)} gaps")
    if result is not None:
        columns = (
            replace(columns[0], note=f"perplexity {plain(result.base_perplexity)}"),
            replace(columns[1], note=f"perplexity {plain(result.steered_perplexity)}"),
        )
    twin(
        state.prompt,
        columns,
        key="twin",
        job=None if job.state is State.CANCELLED else job.id,
        total=steering.new_tokens,
        done=None if result is None else _pieces(result),
        state=_told(result, job.state),
        on_end=lambda: None,
        on_stop=lambda: desk.host.cancel(job),
    )
    return result


def _told(result: TwinResult | None, state: State) -> str:
    if result is None:
        return "stopped" if state is State.CANCELLED else "waiting"
    count = len(result.base) + len(result.steered)
    pace = count / max(result.seconds, 1e-9)
    return (
        f"{count} tokens in {plain(result.seconds)} s ({pace:.0f} a second); underlines show how "
        "far the direction moved each choice (KL), the mark where the texts part"
    )


def _pieces(result: TwinResult) -> tuple[list[Piece], list[Piece]]:
    apart = views.parting(result.base, result.steered)
    weights = views.weights(result.divergence)
    base = [Piece(text, 0.0, i == apart) for i, text in enumerate(result.base)]
    pairs = enumerate(zip(result.steered, weights, strict=True))
    return base, [Piece(text, weight, i == apart) for i, (text, weight) in pairs]


def _dose(desk: Desk, recipe: Recipe) -> DoseCurve | None:
    state = desk.state
    spec = Dose(
        model=state.model,
        prompt=state.prompt,
        target=state.target,
        foil=state.foil,
        pos=state.pos,
        plan=state.active,
        recipe=recipe,
        strengths=views.STRENGTHS,
    )
    return desk.ask(spec, DoseCurve, view="dose", what="the metric by strength", height=240)


def _curves(dose: DoseCurve, steering: Steering) -> None:
    metric, moved = views.dose_figure(dose, steering)
    left, right = st.columns(2, gap="medium")
    with left, st.container(key="dose-metric"):
        prose(key="dose-metric-title", title="What it does to the metric")
        lines(metric, key="dose-metric-lines", height=220, on_pick=_dosed(dose))
    with right, st.container(key="dose-moved"):
        prose(key="dose-moved-title", title="How far it moves the next token")
        lines(moved, key="dose-moved-lines", height=220, on_pick=_dosed(dose))


def _dosed(dose: DoseCurve):  # noqa: ANN202
    def pick(step: int) -> None:
        _change(strength=float(dose.strengths[step]))

    return pick


def _recipe(desk: Desk) -> Recipe:
    steering = desk.state.steering
    last = desk.about.n_layers - 1
    layer = (desk.about.n_layers * 7 // 15) if steering.layer is None else steering.layer
    return Recipe(steering.positive, steering.negative, max(0, min(last, layer)))


def _add(recipe: Recipe) -> None:
    state = current()
    become(state.add(Edit("steer", recipe.site, strength=state.steering.strength, recipe=recipe)))


def _keep(key: str, value: object) -> None:
    if st.session_state.get(key) != value:
        st.session_state[key] = value


def _set(field: str, key: str) -> None:
    _change(**{field: st.session_state[key]})


def _set_texts(field: str) -> None:
    found = (line.strip() for line in st.session_state[f"steer-{field}"].splitlines())
    _change(**{field: tuple(line for line in found if line)})


def _reseed() -> None:
    _change(seed=current().steering.seed + 1)


def _change(**fields: Any) -> None:  # noqa: ANN401
    change(steering=replace(current().steering, **fields))


PAGE = Page("Steer", "", render, order=40)
