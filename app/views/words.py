"""Words and numbers as they are shown: tokens made visible, true minus signs, units always."""

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["", "token", "target", "foil", "number", "strong", "muted"]
_VISIBLE: Final = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"})


@dataclass(frozen=True)
class Span:
    """A piece of a sentence and how it is set."""

    text: str
    kind: Kind = ""


Sentence = tuple[Span, ...]
Words = str | Sentence


def shown(token: str) -> str:
    """A token as it can be read: a leading space as `·`, a newline as `↵`."""
    if not token:
        return "∅"
    body = token.lstrip(" ")
    return "·" * (len(token) - len(body)) + body.translate(_VISIBLE)


def literal(text: str) -> str:
    """A text that Streamlit's labels, which are Markdown, show as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!~$:<>|])", r"\\\1", text)


def typed(text: str) -> str:
    """What was meant by a text typed into a field: the inverse of `shown`."""
    body = text.lstrip("·")
    return " " * (len(text) - len(body)) + body.replace("↵", "\n")


def say(*parts: str | Span) -> Sentence:
    """A sentence of plain strings and spans."""
    return tuple(Span(part) if isinstance(part, str) else part for part in parts)


def token(text: str, kind: Kind = "token") -> Span:
    """A token within a sentence."""
    return Span(shown(text), kind)


def strong(text: str) -> Span:
    """The number a sentence is about."""
    return Span(text, "strong")


def signed(value: float, unit: str = "") -> str:
    """`+3.41 logits`: a sign unless it is 0, two to three significant digits."""
    return _with_unit(_digits(value, sign=True), unit)


def plain(value: float, unit: str = "") -> str:
    """`3.41 logits`: two to three significant digits."""
    return _with_unit(_digits(value, sign=False), unit)


def percent(share: float) -> str:
    """A probability or share: `62 %`, `4.1 %`, `0.03 %`, `< 0.01 %`."""
    value = 100 * share
    if 0 < value < 0.01:
        return "< 0.01 %"
    if value == 0 or value >= 99.95:
        return f"{value:.0f} %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 1 else f"{value:.2f} %"


def tiny(value: float) -> str:
    """A rounding error: `0` or `2.1 × 10⁻⁶`."""
    if value == 0:
        return "0"
    if abs(value) >= 0.001:
        return _digits(value, sign=False)
    power = math.floor(math.log10(abs(value)))
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value / 10**power:.1f} × 10{raised}".replace("-", "−")


def times(count: int, one: str, many: str = "") -> str:
    """`1 layer`, `3 layers`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def round_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Round numbers from at most `low` to at least `high`, evenly apart, about `most` of them."""
    span = max(high - low, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 5, 10, 20) if power * m * (most - 1) >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(i * step, 10) for i in range(first, max(last, first + 1) + 1))


def _with_unit(number: str, unit: str) -> str:
    return f"{number} {unit}".rstrip()


def _digits(value: float, *, sign: bool) -> str:
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    places = 0 if size >= 100 else 1 if size >= 10 else 2
    if 0 < size < 0.1:
        places = min(4, 1 - math.floor(math.log10(size)))
    text = f"{value:+,.{places}f}" if sign else f"{value:,.{places}f}"
    if round(value, places) == 0:
        text = f"{0:.{places}f}"
    return text.replace("-", "−")
