"""The investigation: everything a screen shows, as one frozen value; as a URL, and as JSON.

Notable: an edit that steers is kept as its *recipe* (the texts, the method, the layer), never as a
vector: the worker makes the direction again from it, so a link or a file says all there is to say.
`from_json(to_json(x)) == x` and `from_query(to_query(x), …) == x` hold exactly.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, Literal

from app.codec import StateError, decode, encode

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
BUILT_IN: Final = "induction"  # the hand-built model, which needs no download
DEFAULT_PROMPT: Final = "When Mary and John went to the store, John gave a drink to"
MOST_GAPS: Final = 3.0  # the strongest steering the page offers
MOST_TOKENS: Final = 200  # the longest text it writes
MOST_TEMPERATURE: Final = 2.0
SHORT: Final = 2048  # bytes of query string; beyond it the link names a stored file
_DIGEST = re.compile(r"[0-9a-f]{64}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise StateError(f"steering.{name} must be from {low:g} to {high:g}, got {value:g}.")


@dataclass(frozen=True)
class Recipe:
    """How a steering direction is made: a method, its two sets of texts, and where."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    layer: int
    method: str = "mean_difference"

    @property
    def site(self) -> str:
        """The name of the site it acts at."""
        return f"blocks.{self.layer}.hook_resid_post"


@dataclass(frozen=True)
class Edit:
    """One change of the plan, as a chip: an operator at a site, or a steering recipe."""

    op: Literal["zero", "scale", "steer"]
    site: str
    heads: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()  # none means every position
    factor: float = 1.0  # what "scale" multiplies by
    strength: float = 1.0  # gaps for "steer", the whole change otherwise
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        """Holds an edit that steers to its recipe: a chip must name the place that is steered.

        Raises:
            StateError: If it has no recipe, names another place or heads, or does not steer and
                has one.
        """
        if (self.op == "steer") != (self.recipe is not None):
            raise StateError(f"An edit has a recipe if it steers, and only then; got {self.op}.")
        if self.recipe is not None and self.site != self.recipe.site:
            raise StateError(f"The recipe steers {self.recipe.site}, not {self.site}.")
        if self.recipe is not None and self.heads:
            raise StateError(
                f"An edit that steers adds to the whole residual stream, which has no heads; "
                f"got heads {list(self.heads)}. Leave them out."
            )

    @property
    def label(self) -> str:
        """A few words for its chip."""
        place = self.place
        if self.op == "zero":
            return f"ablate {place}"
        if self.op == "scale":
            return f"scale {place} × {self.factor:g}"
        return f"steer {place} {self.strength:+.2g} gaps".replace("-", "−")

    @property
    def place(self) -> str:
        """Where it acts, as short as the field writes it: `L9H6`, `L4 MLP`."""
        found = re.search(r"\.(\d+)\.(.*)", self.site)
        if not found:
            return self.site
        layer, part = found.groups()
        if part == "attn.hook_z" and self.heads:
            where = "+".join(f"L{layer}H{head}" for head in self.heads)
        else:
            names = {
                "hook_mlp_out": "MLP",
                "hook_attn_out": "attention",
                "hook_resid_post": "residual",
                "hook_resid_pre": "residual in",
            }
            where = f"L{layer} {names.get(part, part)}"
        at = f" at {', '.join(map(str, self.positions))}" if self.positions else ""
        return where + at


@dataclass(frozen=True)
class Steering:
    """What the Steer page is set to; texts left out are the model's own examples."""

    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    layer: int | None = None  # none: the middle of the model
    strength: float = -0.75  # gaps
    prompt: str = ""  # what is continued; the metric keeps the investigation's prompt
    new_tokens: int = 32
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        """Holds what a link or a file says to what the page's own controls allow.

        Raises:
            StateError: If a setting is out of its range; names the range.
        """
        _within("strength", self.strength, -MOST_GAPS, MOST_GAPS)
        _within("new_tokens", self.new_tokens, 1, MOST_TOKENS)
        _within("temperature", self.temperature, 0, MOST_TEMPERATURE)
        _within("seed", self.seed, 0, 2**32 - 1)
        _within("layer", self.layer or 0, 0, 10_000)


@dataclass(frozen=True)
class Investigation:
    """One question about one model: what every page is a lens on."""

    model: str = DEFAULT_MODEL
    prompt: str = DEFAULT_PROMPT
    target: str | None = " Mary"  # none: what the model likes best
    foil: str | None = " John"  # none: its runner-up
    pos: int | None = None  # none: the last token
    plan: tuple[Edit, ...] = ()
    bypass: bool = False
    cell: tuple[int, int] | None = None  # layer and position picked on the Lens page
    head: tuple[int, int] | None = None  # layer and head picked on the Attention page
    show_sink: bool = False
    steering: Steering = field(default_factory=Steering)

    @property
    def active(self) -> tuple[Edit, ...]:
        """The plan as it runs now."""
        return () if self.bypass else self.plan

    def add(self, edit: Edit) -> "Investigation":
        """The same, with one more intervention; an edit already there is not added twice."""
        return self if edit in self.plan else replace(self, plan=(*self.plan, edit), bypass=False)

    def besides(self, recipe: Recipe) -> tuple[Edit, ...]:
        """The plan as it runs now, without what adds this recipe everywhere."""
        return tuple(edit for edit in self.active if not _adds(edit, recipe))

    def steer(self, recipe: Recipe, strength: float) -> "Investigation":
        """The same with the recipe in its plan at that strength, in its old place if it has one."""
        edit = Edit("steer", recipe.site, strength=strength, recipe=recipe)
        at = next((i for i, one in enumerate(self.plan) if _adds(one, recipe)), len(self.plan))
        return replace(self, plan=(*self.plan[:at], edit, *self.plan[at + 1 :]), bypass=False)

    def remove(self, index: int) -> "Investigation":
        """The same without the intervention at `index`."""
        return replace(self, plan=self.plan[:index] + self.plan[index + 1 :])

    def move(self, index: int, to: int) -> "Investigation":
        """The same with the intervention at `index` moved to place `to`."""
        rest = self.plan[:index] + self.plan[index + 1 :]
        return replace(self, plan=(*rest[:to], self.plan[index], *rest[to:]))

    def ask(self, prompt: str) -> "Investigation":
        """The same question of another prompt: target, foil and picks belonged to the old one."""
        if prompt == self.prompt:
            return self
        return replace(self, prompt=prompt, target=None, foil=None, pos=None, cell=None)


def _adds(edit: Edit, recipe: Recipe) -> bool:
    return edit.recipe == recipe and not edit.positions


def to_json(state: Investigation) -> str:
    """Canonical JSON: the same investigation is always the same text."""
    return _canonical(encode(state))


def from_json(text: str) -> Investigation:
    """The investigation of a JSON text.

    Raises:
        StateError: If the text is not JSON or describes none.
    """
    return decode(Investigation, _parsed("investigation", text))


def digest(state: Investigation) -> str:
    """The name of an investigation's stored file."""
    return sha256(to_json(state).encode()).hexdigest()


def always_here(model: str) -> bool:
    """Whether a model is one that every installation has, or begins with."""
    return model in (DEFAULT_MODEL, BUILT_IN)


def to_query(state: Investigation, knows: Callable[[str], bool] = always_here) -> dict[str, str]:
    """The investigation as the fields of a link, without what is at its default.

    The model is always named: an address without any field of ours is a click on the menu.
    Beyond `SHORT` bytes, or for a model that a link may not name, one field `s`: its digest.
    """
    data = encode(state)
    query = {_SHORT[name]: _field(value) for name, value in data.items()}
    query["m"] = state.model
    size = sum(len(key) + len(value.encode()) for key, value in query.items())
    if size > SHORT or not knows(state.model):
        return {"s": digest(state)}
    return query


def from_query(
    query: Mapping[str, str],
    stored: Callable[[str], str | None],
    knows: Callable[[str], bool] = always_here,
) -> Investigation | None:
    """The investigation of a link; none if the link has no field of ours.

    `stored` gives the JSON text of a digest, or nothing; `knows` says which models may be named.

    Raises:
        StateError: If a field is malformed, it names another model, or the stored file is not on
            this machine.
    """
    if "s" in query:
        return _stored(query["s"], stored)
    ours = {name: query[key] for name, key in _SHORT.items() if key in query}
    if not ours:
        return None
    data = {name: _value(name, text) for name, text in ours.items()}
    state = decode(Investigation, data, "link")
    if not knows(state.model):
        raise StateError(
            f"A link may only name a model that is on this machine by name, not {state.model!r}; "
            "open any other in the model's menu."
        )
    return state


_SHORT: Final = {
    "model": "m",
    "prompt": "p",
    "target": "t",
    "foil": "f",
    "pos": "pos",
    "plan": "plan",
    "bypass": "off",
    "cell": "cell",
    "head": "sel",
    "show_sink": "sink",
    "steering": "steer",
}
SHORT_KEYS: Final = frozenset({*_SHORT.values(), "s"})
_TEXTS: Final = frozenset({"model", "prompt", "target", "foil"})  # written as they are
_OPTIONAL: Final = frozenset({"target", "foil"})  # where nothing is written as an empty field


def _field(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _canonical(value)


def _value(name: str, text: str) -> object:
    if name in _OPTIONAL and not text:
        return None
    return text if name in _TEXTS else _parsed(name, text)


def _stored(name: str, stored: Callable[[str], str | None]) -> Investigation:
    text = stored(name) if _DIGEST.fullmatch(name) else None
    if text is None:
        raise StateError("This link names a saved investigation that is not on this machine.")
    return from_json(text)


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _parsed(what: str, text: str) -> object:
    try:
        data = json.loads(text)
        _canonical(data).encode()  # JSON can spell half a character, which no text holds
    except (ValueError, RecursionError):  # a ValueError too where a number is too long to read
        raise StateError(f"{what} is not JSON: {text[:60]!r}.") from None
    return data
