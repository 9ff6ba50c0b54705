"""What comes back from the worker: texts, numbers and numpy arrays; no torch, nothing to mend."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Example:
    """A prompt that shows what a model can do."""

    name: str
    prompt: str
    target: str | None
    foil: str | None


@dataclass(frozen=True)
class SteeringExample:
    """Two sets of texts this model can be steered by, and a text to continue."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    prompt: str


@dataclass(frozen=True)
class AboutModel:
    """The model in use."""

    name: str
    parameters: int
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    n_ctx: int
    device: str
    dtype: str
    examples: tuple[Example, ...]
    steering: SteeringExample
    notice: str = ""  # why this is not the model that was asked for, if so


@dataclass(frozen=True)
class Readable:
    """Whether a model can read a prompt."""

    readable: bool


@dataclass(frozen=True)
class Candidate:
    """A token the model may say next."""

    text: str
    prob: float
    before: float  # its probability without the plan
    logit: float
    spelt: bool  # whether its text names it: part of a character has none


@dataclass(frozen=True)
class Receipt:
    """What an intervention did."""

    acted: int
    tokens: int
    change: float  # norm of all it changed, in activation units


@dataclass(frozen=True)
class Packed:
    """A plan as a zip of the files the library saves."""

    data: bytes


@dataclass(frozen=True)
class Answer:
    """Target and foil as they were resolved; `automatic` where the model's own best are used."""

    target: str
    foil: str
    target_automatic: bool
    foil_automatic: bool
    target_key: str | int  # what names it in Python: its text, or its id where it has none
    foil_key: str | int


@dataclass(frozen=True)
class Reading:
    """What the model says after the position read."""

    tokens: tuple[str, ...]
    pos: int
    answer: Answer
    before: float  # logit difference without the plan
    after: float | None  # with it; nothing without a plan
    target: Candidate
    foil: Candidate
    target_rank: int
    foil_rank: int
    top: tuple[Candidate, ...]
    entropy: float  # bits
    receipts: tuple[Receipt, ...]
    milliseconds: float  # of one plain forward
    n_context: int


@dataclass(frozen=True)
class LensReading:
    """The residual stream read as words; row 0 is the embedding, row i + 1 the end of layer i."""

    tokens: tuple[str, ...]
    positions: tuple[int, ...]  # of the columns
    layers: tuple[str, ...]
    texts: tuple[tuple[tuple[str, ...], ...], ...]  # layer column rank
    probs: Array  # layer column rank
    entropy: Array  # layer column; bits
    divergence: Array  # layer column; bits from the model's own output
    answer: Answer
    pos: int
    target_rank: Array  # layer; at the position read; equals share the first of their ranks
    target_alone: Array  # layer; whether it is the likeliest, and no other as likely
    residual: float  # bits between the last row and the model


@dataclass(frozen=True)
class Path:
    """Target and foil after every layer, at the position read; row 0 is the embedding."""

    layers: tuple[str, ...]
    answer: Answer
    target_prob: Array  # layer
    foil_prob: Array
    target_rank: Array  # equals share the first of their ranks
    foil_rank: Array
    target_alone: Array  # whether it is the likeliest, and no other as likely
    vocabulary: int
    residual: float  # bits between the last row and the model


@dataclass(frozen=True)
class ComponentScores:
    """What each part adds to target - foil, in logits."""

    answer: Answer
    names: tuple[str, ...]  # "embed", "L3 MLP", "L9H6"
    layers: tuple[int | None, ...]
    heads: tuple[int | None, ...]
    values: Array
    total: float
    metric: float
    source: str


@dataclass(frozen=True)
class Mosaic:
    """Every head's pattern; where a cell stands for several positions, their largest."""

    tokens: tuple[str, ...]
    tiles: Array  # layer head query key
    besides: Array  # the same without attention to the first token
    pooled: int  # positions per cell
    sink: Array  # layer head; mean attention to the first token, over later queries
    rowsum: float  # largest difference of a row's sum from 1


@dataclass(frozen=True)
class HeadPattern:
    """One head's attention, exact; of a long prompt a window of positions."""

    tokens: tuple[str, ...]  # of the window
    layer: int
    head: int
    pattern: Array  # query key
    first: int  # position of the first row and column
    length: int  # positions of the prompt
    keys: Array  # query rank; positions of the strongest keys in the whole prompt
    shares: Array  # query rank
    key_texts: tuple[tuple[str, ...], ...]  # query rank


@dataclass(frozen=True)
class Quality:
    """One line of a quality card."""

    name: str
    value: float
    unit: str
    note: str


@dataclass(frozen=True)
class DirectionCard:
    """What a direction is worth."""

    site: str
    gap: float  # distance of the two means along the direction, in activation units
    relative: float  # a gap as a share of the mean norm of the stream there
    count: int  # texts
    quality: tuple[Quality, ...]


@dataclass(frozen=True)
class DoseCurve:
    """The metric, and how far the next-token distribution moved, by strength."""

    answer: Answer
    strengths: Array
    metric: Array
    divergence: Array  # bits
    base: float  # the metric without the direction
    zero: float  # largest difference of a logit between strength 0 and no direction


@dataclass(frozen=True)
class TwinResult:
    """Baseline and steered continuation, judged by the model without the direction."""

    prompt: str
    base: tuple[str, ...]
    steered: tuple[str, ...]
    divergence: Array  # of each steered token's distribution from the plain one, bits
    base_perplexity: float
    steered_perplexity: float
    receipt: Receipt
    identical: bool
    repeats: tuple[str, int] | None  # a phrase the steered text repeats, and how often
    seconds: float
