"""Text as it is generated: whole characters only, cut before a stop string, however tokens fall."""

from collections.abc import Sequence
from typing import final

from workbench.core.protocols import Vocabulary

_BROKEN = "\ufffd"  # what a vocabulary shows for the bytes of an unfinished character


@final
class TextStream:
    """The growing text of one row; `push` gives what is new and certain.

    Holds back unfinished characters, and any tail that may become a stop string. Special tokens
    are left out. Decodes a short window, never the whole text again.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        self._vocabulary, self._stop = vocabulary, tuple(stop)
        self._ids: list[int] = []
        self._start, self._read = 0, 0  # the window's first token, and the first one not yet shown
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text this token completes, which may be none."""
        self._ids.append(token)
        return self._emit(self._decoded(final=False), final=False)

    def flush(self) -> str:
        """What was held back, once no token will follow."""
        return self._emit(self._decoded(final=True), final=True)

    def _decoded(self, *, final: bool) -> str:
        shown = self._text(self._start, self._read)
        whole = self._text(self._start, len(self._ids))
        if not final and (whole.endswith(_BROKEN) or len(whole) < len(shown)):
            return ""
        new = whole[len(shown) :]
        if new:  # else the window would begin with a special token, and lose the next one's space
            self._start, self._read = self._read, len(self._ids)
        return new

    def _text(self, start: int, stop: int) -> str:
        return self._vocabulary.decode(self._ids[start:stop], skip_special=True)

    def _emit(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:  # the one that is complete first, as if characters came one by one
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many last characters of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
