"""Metrics: logits of an answer position → one number per example, with a unit.

A `Metric` is made from a contrast, in words; `metric(trace)` reads a run. `metric.on(model)` is the
same in one model's tokens: it says which vocabulary columns it reads, so that nothing else is
unembedded, and reads many rows of a sweep at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import Logits, PerExample
from workbench.core.data import Contrast
from workbench.core.errors import OptionError, ShapeError
from workbench.core.options import expect
from workbench.core.protocols import Model
from workbench.core.trace import Trace

Own = Callable[[Float[Tensor, "row d_vocab"]], Float[Tensor, " row"]]  # each row by itself
Read = Callable[[Float[Tensor, "row column"], Int[Tensor, " row"]], Float[Tensor, " row"]]


@final
@dataclass(frozen=True, eq=False)
class TokenMetric:
    """A metric in one model's tokens.

    `read(answer_logits, examples)` takes the `vocabulary` columns at the answer position of any
    rows, and which example each row is about.
    """

    name: str
    unit: str
    n_examples: int
    vocabulary: Int[Tensor, " column"] | None  # None: it reads every column
    read: Read

    def __call__(self, run: Trace | Logits) -> PerExample:
        """The metric of each example of a run, at its last token.

        Bare logits must be those of equally long prompts, whose last column is the answer's.

        Raises:
            ShapeError: If the rows are not the examples of the contrast.
        """
        answers = run[:, -1] if isinstance(run, Tensor) else run.answer_logits
        known = None if isinstance(run, Tensor) else run.vocabulary
        self.check_rows(len(answers))
        return self.read(self._columns(answers, known), torch.arange(len(answers)))

    def check_rows(self, rows: int) -> None:
        """Refuses a run that is not about the metric's examples.

        Raises:
            ShapeError: If the counts differ.
        """
        if rows != self.n_examples:
            raise ShapeError(self.name, f"{self.n_examples} rows, one per example", str(rows))

    def on(self, model: Model) -> "TokenMetric":  # noqa: ARG002 - as a Metric has it
        """Itself."""
        return self

    def _columns(self, answers: Tensor, known: Tensor | None) -> Tensor:
        if self.vocabulary is None and known is not None:
            some = f"only {len(known)} columns"
            raise ShapeError(self.name, "a run with the logits of the whole vocabulary", some)
        if self.vocabulary is None:
            return answers
        if known is None:
            return answers[:, self.vocabulary]
        places = [(known == column).nonzero() for column in self.vocabulary]
        if not all(len(place) for place in places):
            raise ShapeError(self.name, f"columns {self.vocabulary.tolist()}", f"{known.tolist()}")
        return answers[:, torch.cat([place[0] for place in places])]


def read_by(metric: "AnyMetric", model: Model, rows: int) -> TokenMetric:
    """The metric in a model's tokens, for a run of that many rows.

    Raises:
        OptionError: If it is no metric.
        ShapeError: If the rows are not the metric's examples.
    """
    if isinstance(metric, Metric | TokenMetric):
        reader = metric.on(model)
        reader.check_rows(rows)
        return reader
    if not callable(metric):
        own = "one of wb.metrics, or a function of answer logits (row d_vocab) to one number a row"
        raise OptionError("metric", own, metric)
    return _of_function(metric, rows)


def _of_function(function: Own, rows: int) -> TokenMetric:
    """A metric of the user's own, which reads the whole vocabulary."""
    name = function.__qualname__ if isinstance(function, FunctionType) else str(type(function))

    def read(logits: Tensor, examples: Tensor) -> Tensor:  # noqa: ARG001 - a row says enough
        made: object = function(logits)
        if not isinstance(made, Tensor) or made.shape != (len(logits),):
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            expected = f"one number for each of {len(logits)} rows"
            raise ShapeError(f"metric {name}", expected, str(got))
        return made

    return TokenMetric(name, "of its own", rows, None, read)


class Metric(ABC):
    """A number per example, read from the logits of the answer position."""

    name: ClassVar[str]
    unit: ClassVar[str]

    @abstractmethod
    def on(self, model: Model) -> TokenMetric:
        """The same in this model's tokens."""

    @override
    def __repr__(self) -> str:
        return f"{self.name} in {self.unit}, of {vars(self)['contrast']!r}"

    def __call__(self, run: Trace) -> PerExample:
        """The metric of each example of a run, at its last token.

        Raises:
            OptionError: If it is given bare logits, which do not say whose they are.
        """
        expect("run", run, Trace, "a Trace; metric.on(model) reads bare logits")
        return self.on(run.model)(run)


@final
@dataclass(frozen=True, repr=False)
class LogitDifference(Metric):
    """logit[target] - logit[foil]; positive where the model prefers the target."""

    contrast: Contrast
    name: ClassVar[str] = "logit_difference"
    unit: ClassVar[str] = "logits"

    @override
    def on(self, model: Model) -> TokenMetric:
        words = self.contrast.on(model)
        columns, where = torch.tensor([words.target, words.foil]).unique(return_inverse=True)

        def read(logits: Tensor, examples: Tensor) -> Tensor:
            target, foil = where.to(logits.device)[:, examples]
            picked = logits.gather(1, torch.stack([target, foil], dim=1))
            return picked[:, 0] - picked[:, 1]

        return TokenMetric(self.name, self.unit, len(words.target), columns, read)


@final
@dataclass(frozen=True, repr=False)
class TargetLogit(Metric):
    """logit[target]."""

    contrast: Contrast
    name: ClassVar[str] = "logit"
    unit: ClassVar[str] = "logits"

    @override
    def on(self, model: Model) -> TokenMetric:
        columns, where = torch.tensor(self.contrast.on(model).target).unique(return_inverse=True)

        def read(logits: Tensor, examples: Tensor) -> Tensor:
            return logits.gather(1, where.to(logits.device)[examples, None])[:, 0]

        return TokenMetric(self.name, self.unit, len(where), columns, read)


@final
@dataclass(frozen=True, repr=False)
class TargetLogProbability(Metric):
    """log p(target) over the whole vocabulary."""

    contrast: Contrast
    name: ClassVar[str] = "log_probability"
    unit: ClassVar[str] = "nats"

    @override
    def on(self, model: Model) -> TokenMetric:
        target = torch.tensor(self.contrast.on(model).target)

        def read(logits: Tensor, examples: Tensor) -> Tensor:
            return logits.log_softmax(-1).gather(1, target.to(logits.device)[examples, None])[:, 0]

        return TokenMetric(self.name, self.unit, len(target), None, read)


def logit_difference(contrast: Contrast) -> Metric:
    """logit[target] - logit[foil] at the answer position, in logits."""
    return LogitDifference(_contrast(contrast))


def logit(contrast: Contrast) -> Metric:
    """logit[target] at the answer position, in logits."""
    return TargetLogit(_contrast(contrast))


def log_probability(contrast: Contrast) -> Metric:
    """Log p(target) at the answer position, in nats."""
    return TargetLogProbability(_contrast(contrast))


def _contrast(contrast: Contrast) -> Contrast:
    return expect("contrast", contrast, Contrast, "a wb.Contrast")


AnyMetric = Metric | TokenMetric | Own
