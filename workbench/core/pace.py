"""How far a long computation is, how fast it goes, and when it will be done."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from typing_extensions import override

Clock = Callable[[], float]


@final
@dataclass(frozen=True)
class Pace:
    """Texts and tokens read so far; rate and end are reckoned in tokens, since lengths differ.

    `seconds` and the rate are this session's; what an earlier one left counts as done.
    """

    done: int  # texts
    total: int
    tokens: int
    total_tokens: int
    found: int  # tokens that were there when this session began
    seconds: float

    @property
    def rate(self) -> float | None:
        """Tokens per second; None before the first."""
        fresh = self.tokens - self.found
        return fresh / self.seconds if fresh > 0 and self.seconds > 0 else None

    @property
    def remaining(self) -> float | None:
        """Seconds until the end, at this rate; None before there is one."""
        rate = self.rate
        return None if rate is None else (self.total_tokens - self.tokens) / rate

    @override
    def __str__(self) -> str:
        """`40/100 texts, 812 tokens/s, 12 s left`."""
        shown = f"{self.done}/{self.total} texts"
        if self.rate is None or self.remaining is None:
            return shown
        return f"{shown}, {self.rate:,.0f} tokens/s, {self.remaining:,.0f} s left"


@final
class Pacer:
    """Counts texts and tokens as they are done, and tells how far it is."""

    def __init__(
        self,
        total: int,
        total_tokens: int,
        tell: Callable[[Pace], None] | None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._total, self._total_tokens, self._tell, self._clock = total, total_tokens, tell, clock
        self._done = self._tokens = self._found = 0
        self._start = clock()

    def find(self, texts: int, tokens: int) -> None:
        """Counts what was done before this session."""
        self._done, self._tokens = self._done + texts, self._tokens + tokens
        self._found += tokens

    def add(self, texts: int, tokens: int) -> None:
        """Counts what has just been done, and tells."""
        self._done, self._tokens = self._done + texts, self._tokens + tokens
        if self._tell is not None:
            self._tell(self.pace())

    def pace(self) -> Pace:
        """How far it is now."""
        seconds = self._clock() - self._start
        return Pace(self._done, self._total, self._tokens, self._total_tokens, self._found, seconds)
