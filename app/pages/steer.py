"""Steer: two sets of texts make a direction; the model writes with it and without it."""

from dataclasses import replace

import streamlit as st

from app.components.foot import foot
from app.components.lines import lines
from app.components.prose import prose
from app.components.twin import Column, Piece, twin
from app.desk import QUIET, Desk, Wait, become, current, lane, stopped
from app.fields import line
from app.host import Job, State
from app.page import Page
from app.results import DirectionCard, DoseCurve, TwinResult
from app.specs import Direct, Dose, Twin
from app.state import MOST_TEMPERATURE, MOST_TOKENS, Recipe, Steering
from app.views import steer as views
from app.views.words import plain, say, signed


def render(desk: Desk) -> None:
    """Controls, the two texts, then what happened and at what price."""
    recipe = _recipe(desk)
    title = st.container()
    _controls(desk, recipe)
    card = desk.ask(
        Direct(desk.state.model, recipe),
        DirectionCard,
        Wait("direction", "making the direction", 160),
    )
    if card is None:
        with title:
            prose(key="steer-title", kind="page", title=views.QUESTION)
        _texts(desk.state.steering, recipe)
        return
    result = _twin(desk, recipe, views.apart(desk.state, recipe))
    view = None if result is None else views.report(result, card, desk.state, recipe)
    with title:
        if view is None:
            told = views.direction_sentence(card)
            prose(told, key="steer-title", kind="page", title=views.QUESTION)
        else:
            prose(*view.sentences, key="steer-title", kind="page", title=view.title)
    if view is not None:
        foot(view.foot, key="steer-foot")
    _texts(desk.state.steering, recipe)
    _curves(desk, recipe)


def _controls(desk: Desk, recipe: Recipe) -> None:
    steering = desk.state.steering
    text, strength, layer, verb = st.columns(
        [2.2, 2, 1.5, 1.1], gap="medium", vertical_alignment="bottom"
    )
    with text:
        line(
            "steer-prompt",
            "Text to continue",
            _prompt(desk),
            on_text=lambda text: _become(replace(current().steering, prompt=text)),
            hint="Written on twice; left empty, the example. The metric keeps its own prompt.",
        )
    with strength:
        _keep("steer-strength", steering.strength)
        st.select_slider(
            "Strength, gaps",
            views.offered(steering),
            key="steer-strength",
            format_func=views.gaps,
            on_change=_set,
            args=("strength", "steer-strength"),
            help="One gap takes the negative texts' mean to the positive's. 0 changes nothing.",
        )
    with layer:
        _layer(desk.about.n_layers, recipe)
    with verb:
        words, possible = views.adding(desk.state, recipe)
        st.button(
            words,
            key="steer-add",
            type="primary",
            width="stretch",
            disabled=not possible,
            on_click=_add,
            args=(recipe,),
            help="Keeps this direction in the plan, so every page shows the steered model.",
        )


def _layer(n_layers: int, recipe: Recipe) -> None:
    if n_layers == 1:
        prose(say("Layer 0, the only one"), key="steer-layer-only")
        return
    _keep("steer-layer", recipe.layer)
    st.slider(
        "Layer",
        0,
        n_layers - 1,
        key="steer-layer",
        on_change=_set,
        args=("layer", "steer-layer"),
        help="The direction is read and added at the end of this layer.",
    )


def _texts(steering: Steering, recipe: Recipe) -> None:
    with st.expander(
        "The texts that make the direction, and the draw", key="steer-texts", on_change="rerun"
    ) as box:
        if not box.open:
            return
        sides = (
            ("positive", "Positive texts", recipe.positive),
            ("negative", "Negative texts", recipe.negative),
        )
        for column, (key, name, texts) in zip(st.columns(2, gap="medium"), sides, strict=True):
            _keep(f"steer-{key}", "\n".join(texts))
            column.text_area(
                f"{name}, one per line",
                key=f"steer-{key}",
                height=180,
                help="Left empty, the example's.",
                on_change=_set_texts,
                args=(key,),
            )
        tokens, noise, seed = st.columns(3, gap="medium", vertical_alignment="bottom")
        with tokens:
            _keep("steer-tokens", steering.new_tokens)
            st.number_input(
                "New tokens",
                1,
                MOST_TOKENS,
                key="steer-tokens",
                on_change=_set,
                args=("new_tokens", "steer-tokens"),
            )
        with noise:
            _keep("steer-temperature", steering.temperature)
            st.number_input(
                "Temperature",
                0.0,
                MOST_TEMPERATURE,
                step=0.1,
                key="steer-temperature",
                on_change=_set,
                args=("temperature", "steer-temperature"),
                help="0 always takes the likeliest token.",
            )
        seed.button("Draw again", key="steer-seed", on_click=_reseed, width="stretch")


def _twin(desk: Desk, recipe: Recipe, apart: views.Apart) -> TwinResult | None:
    state, steering = desk.state, desk.state.steering
    spec = Twin(
        model=state.model,
        prompt=_prompt(desk),
        plan=apart.plan,
        recipe=recipe,
        strength=steering.strength,
        new_tokens=steering.new_tokens,
        temperature=steering.temperature,
        seed=steering.seed,
    )
    job = desk.submit(spec, view="twin")
    job.ended.wait(QUIET)  # what cannot be written is refused at once, and should show at once
    result = job.result if isinstance(job.result, TwinResult) else None
    halted = stopped(job) or job.state is State.CANCELLED
    if job.failure is not None:
        prose(say(job.failure.message), key="twin-error", kind="error")
        if job.failure.retry:
            st.button("Retry", key="twin-retry", on_click=desk.resume, args=(job, "twin"))
        return None
    columns = Column(apart.name), Column(f"Steered {signed(steering.strength)} gaps")
    if result is not None:
        columns = (
            replace(columns[0], note=f"perplexity {plain(result.base_perplexity)}"),
            replace(columns[1], note=f"perplexity {plain(result.steered_perplexity)}"),
        )
    twin(
        _prompt(desk),
        columns,
        key="twin",
        job=job.id,
        lane=lane("twin"),
        total=steering.new_tokens,
        done=_written(job) if halted else None if result is None else _pieces(result),
        state="stopped; what was written stays" if halted else _told(result),
        on_end=lambda: None,
        on_stop=lambda: desk.stop(job, "twin"),
    )
    if halted:
        st.button("Write again", key="twin-again", on_click=desk.resume, args=(job, "twin"))
    return result


def _written(job: Job) -> tuple[list[Piece], list[Piece]]:
    rows: tuple[list[Piece], list[Piece]] = ([], [])
    for item in job.partial:
        match item:
            case [int() as row, str() as text]:
                rows[row].append(Piece(text))
            case _:
                continue
    return rows


def _told(result: TwinResult | None) -> str:
    if result is None:
        return "waiting"
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
        plan=state.besides(recipe),
        recipe=recipe,
        strengths=views.STRENGTHS,
    )
    return desk.ask(spec, DoseCurve, Wait("dose", "the metric by strength", 240))


def _curves(desk: Desk, recipe: Recipe) -> None:
    dose = _dose(desk, recipe)
    if dose is None:
        return
    view = views.dosed(dose, desk.state, recipe)
    prose(*view.sentences, key="dose-title", title=view.title)
    metric, moved = views.dose_figure(dose, desk.state.steering)
    left, right = st.columns(2, gap="medium")
    with left, st.container(key="dose-metric"):
        lines(metric, key="dose-metric-lines", height=220, on_pick=_dosed(dose))
    with right, st.container(key="dose-moved"):
        lines(moved, key="dose-moved-lines", height=220, on_pick=_dosed(dose))
    foot(view.foot, key="dose-foot")


def _dosed(dose: DoseCurve):
    def pick(step: int) -> None:
        _become(replace(current().steering, strength=float(dose.strengths[step])))

    return pick


def _recipe(desk: Desk) -> Recipe:
    steering, example = desk.state.steering, desk.about.steering
    last = desk.about.n_layers - 1
    layer = (desk.about.n_layers * 7 // 15) if steering.layer is None else steering.layer
    positive, negative = (
        steering.positive or example.positive,
        steering.negative or example.negative,
    )
    return Recipe(positive, negative, max(0, min(last, layer)))


def _prompt(desk: Desk) -> str:
    return desk.state.steering.prompt or desk.about.steering.prompt


def _add(recipe: Recipe) -> None:
    state = current()
    become(state.steer(recipe, state.steering.strength))


def _keep(key: str, value: object) -> None:
    if st.session_state.get(key) != value:
        st.session_state[key] = value


def _set(field: str, key: str) -> None:
    _become(replace(current().steering, **{field: st.session_state[key]}))


def _set_texts(field: str) -> None:
    found = (line.strip() for line in st.session_state[f"steer-{field}"].splitlines())
    texts = tuple(line for line in found if line)
    _become(replace(current().steering, **{field: texts}))


def _reseed() -> None:
    _become(replace(current().steering, seed=current().steering.seed + 1))


def _become(steering: Steering) -> None:
    become(replace(current(), steering=steering))


PAGE = Page("Steer", "", render, order=40)
