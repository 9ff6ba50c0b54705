"""The frame's words: what is awaited, the live metric, the plan as chips, the model in a line."""

from dataclasses import dataclass

from app.results import AboutModel, Reading
from app.state import Edit, Investigation
from app.views.words import Sentence, Span, literal, plain, say, signed, times, token


@dataclass(frozen=True)
class Chip:
    """An intervention of the plan."""

    label: str
    receipt: str
    title: str


@dataclass(frozen=True)
class BarView:
    """The metric line."""

    name: Sentence
    before: str
    after: str | None
    unit: str
    how: Sentence
    plan: tuple[Chip, ...]
    bypass: bool
    empty: str


def bar_view(reading: Reading | None, state: Investigation) -> BarView:
    """The live metric beside the plan, whose receipts say what each intervention did."""
    if reading is None:
        return _without(state)
    answer = reading.answer
    chips = tuple(_chip(edit, index, reading) for index, edit in enumerate(state.plan))
    return BarView(
        name=say(
            "logit difference ", token(answer.target, "target"), " − ", token(answer.foil, "foil")
        ),
        before=signed(reading.before),
        after=None if reading.after is None else signed(reading.after),
        unit="logits",
        how=_how(reading, state),
        plan=chips,
        bypass=state.bypass,
        empty="No interventions yet: ablate a head or steer, and it stands here.",
    )


def _without(state: Investigation) -> BarView:
    """The plan alone, so that what cannot run can be taken back."""
    return BarView(
        name=say("no logit difference yet"),
        before="",
        after=None,
        unit="",
        how=(),
        plan=tuple(Chip(edit.label, "", f"{edit.label} at {edit.site}") for edit in state.plan),
        bypass=state.bypass,
        empty="",
    )


def _how(reading: Reading, state: Investigation) -> Sentence:
    where = f"after position {reading.pos}"
    automatic = reading.answer.target_automatic or reading.answer.foil_automatic
    parts = [where] + (["the model's own top choices"] if automatic else [])
    if state.plan and state.bypass:
        parts.append("plan bypassed")
    elif reading.after is not None:
        parts.append(f"with {times(len(state.active), 'intervention')}")
    return (Span(", ".join(parts), "muted"),)


def _chip(edit: Edit, index: int, reading: Reading) -> Chip:
    if index >= len(reading.receipts):
        return Chip(edit.label, "", f"{edit.label}: bypassed")
    receipt = reading.receipts[index]
    if not receipt.acted:
        return Chip(edit.label, "acts on nothing", f"{edit.label}: {_idle(edit, reading)}")
    touched = times(receipt.tokens, "token")
    size = plain(receipt.change)
    return Chip(
        edit.label, touched, f"{edit.op} at {edit.site}: {touched}, a change of norm {size}"
    )


def _idle(edit: Edit, reading: Reading) -> str:
    """Why an edit acts on nothing."""
    read = reading.pos + 1
    if edit.positions and min(edit.positions) >= read:
        beyond = ", ".join(map(str, edit.positions))
        return f"none of its positions ({beyond}) is among the {times(read, 'token')} read"
    return f"{edit.site} was never reached"


def model_chip(name: str, about: AboutModel | None, reading: Reading | None) -> str:
    """The model's name, where it runs and how fast, as a button's label."""
    parts = [literal(name.rsplit("/", 1)[-1])]
    if about is not None:
        parts.append(about.device)
    if reading is not None:
        parts.append(_pace(reading.milliseconds))
    return " · ".join(parts)


def model_line(about: AboutModel, milliseconds: float | None) -> str:
    """The model in a line: `135 M parameters · cpu · float32 · 62 ms per forward`."""
    parts = [_count(about.parameters), about.device, about.dtype]
    if milliseconds is not None:
        parts.append(f"{_pace(milliseconds)} a forward")
    return " · ".join(parts)


def _pace(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def model_rows(about: AboutModel) -> tuple[tuple[str, str], ...]:
    """The model's sizes."""
    return (
        ("layers", str(about.n_layers)),
        ("heads, key-value heads", f"{about.n_heads}, {about.n_key_value_heads}"),
        ("width", str(about.d_model)),
        ("context", times(about.n_ctx, "token")),
    )


def _count(parameters: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g} {letter} parameters"
    return f"{parameters} parameters"


def waiting(what: str, *, ahead: int, done: int, total: int, eta: float | None) -> str:
    """What is being computed and how far it is."""
    if ahead:
        return f"{what}: {times(ahead, 'job')} ahead"
    if not total:
        return f"{what} …"
    left = f", about {eta:.0f} s left" if eta is not None and eta >= 1 else ""
    return f"{what}: {done} of {total}{left}"
