"""What each row of a generation has said, piece by piece, and why it ended."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from workbench.core.generation.settings import Settings
from workbench.core.protocols import Vocabulary
from workbench.core.text_stream import TextStream


@final
@dataclass(frozen=True)
class Piece:
    """One generated token; prints as the text it completed, which may be empty or several."""

    row: int
    token: int
    text: str
    log_probability: float  # under the model as steered, before temperature and truncation
    done: bool

    @override
    def __str__(self) -> str:
        return self.text


@final
class Rows:
    """What each row has said, and whether it has ended."""

    def __init__(
        self,
        vocabulary: Vocabulary | None,
        settings: Settings,
    ) -> None:
        limits, stops = settings.limits, settings.stops
        self._limits, self._cut = limits, settings.cut
        self._ends = settings.ends
        self._streams = [
            None if vocabulary is None else TextStream(vocabulary, stop) for stop in stops
        ]
        self.tokens: list[list[int]] = [[] for _ in limits]
        self.said: list[list[float]] = [[] for _ in limits]
        self.texts = [""] * len(limits)
        self.ended = [""] * len(limits)

    @property
    def going(self) -> list[bool]:
        """Which rows have not ended."""
        return [not reason for reason in self.ended]

    def push(self, chosen: list[int], said: list[float]) -> Iterator[Piece]:
        """The pieces of one step; rows that have ended stay silent."""
        for row, (token, log_probability) in enumerate(zip(chosen, said, strict=True)):
            if not self.ended[row]:
                yield self._piece(row, token, log_probability)

    def _piece(self, row: int, token: int, log_probability: float) -> Piece:
        self.tokens[row].append(token)
        self.said[row].append(log_probability)
        stream = self._streams[row]
        text, end = "", token in self._ends[row]
        last = end or len(self.tokens[row]) == self._limits[row]
        if stream is not None:
            text = "" if end else stream.push(token)
            text += stream.flush() if last else ""  # which may complete a stop string
            end = end or stream.stopped
        self.texts[row] += text
        if end or last:
            self.ended[row] = "stop" if end else "context" if self._cut[row] else "length"
        return Piece(row, token, text, log_probability, done=bool(self.ended[row]))
