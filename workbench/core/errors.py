"""Every error the workbench raises on purpose.

Each is also the builtin a caller expects, keeps its data in fields, and says where, what was
expected, what came, and what to do next.

    WorkbenchError
    ├─ UnknownNameError       KeyError         no such name; the nearest are given
    ├─ UnknownConfigKeyError  ValueError       a config key neither handled nor ignored
    ├─ WeightsError           ValueError       missing, unexpected, misshapen or truncated weights
    ├─ AssetError             ValueError       a download whose hash or content is not the known one
    ├─ PromptError            ValueError       an empty prompt, one too long, unknown ids
    ├─ TokenError             ValueError       a text that is not exactly one token
    ├─ OptionError            ValueError       an argument outside what it may be
    ├─ ShapeError             ValueError       a tensor of the wrong shape, dtype or device
    ├─ AlignmentError         ValueError       clean and corrupt prompts that do not match
    ├─ EmptySelectionError    ValueError       a selection that selects nothing
    ├─ FormatError            ValueError       a file or JSON that is not what it should be
    ├─ MismatchError          ValueError       a store on disk made under other conditions
    ├─ NotReplayableError     ValueError       a bare function where only data can be saved
    ├─ BusyError              RuntimeError     another process is writing there
    ├─ CancelledError         RuntimeError     the caller's own check asked to stop
    ├─ NeverActedError        RuntimeError     an intervention that was never reached
    ├─ InPlaceEditError       RuntimeError     a tap that wrote into an activation
    ├─ ConvergenceError       RuntimeError     a fit that did not reach its tolerance
    ├─ UnfinishedError        RuntimeError     the result of what has not come to its end
    ├─ NotRecordedError       LookupError      an activation that the run did not record
    ├─ StorageError           OSError          a disk that is full or cannot be written to
    ├─ MemoryLimitError       MemoryError      a run that would not fit, before it runs
    ├─ NotPicklableError      TypeError        what refers to a model, which is no data
    ├─ MissingDependencyError ImportError      an optional package that is not installed
    └─ NonFiniteError         ArithmeticError  a value that is not finite, and where
"""

import difflib
from collections.abc import Iterable, Mapping


class WorkbenchError(Exception):
    """The root of every error the workbench raises on purpose."""

    __str__ = Exception.__str__  # KeyError would show the message's repr


class UnknownNameError(WorkbenchError, KeyError):
    """A name was looked up that does not exist; names the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        nearest = ", ".join(difflib.get_close_matches(name, self.known, n=3, cutoff=0))
        tail = f" Nearest of {len(self.known)}: {nearest}." if self.known else " None is known."
        super().__init__(f"No {kind} named {name!r}.{tail}{f' {hint}' if hint else ''}")

    __str__ = Exception.__str__


class UnknownConfigKeyError(WorkbenchError, ValueError):
    """A model's config holds a key that its family neither handles nor lists as ignored."""

    def __init__(self, family: str, key: str, value: object) -> None:
        self.family, self.key, self.value = family, key, value
        super().__init__(
            f"{family}: config key {key!r} = {value!r} is neither handled nor ignored; "
            f"see workbench/models/families/{family}.py."
        )


class WeightsError(WorkbenchError, ValueError):
    """Weights missing, left over, misshapen or truncated; all of them in one message."""


class AssetError(WorkbenchError, ValueError):
    """A downloaded asset whose hash, archive or content is not the known one."""


class PromptError(WorkbenchError, ValueError):
    """A prompt that cannot be run: empty, longer than the context, or with unknown token ids."""


class TokenError(WorkbenchError, ValueError):
    """A text that had to be exactly one token and is not."""

    def __init__(self, text: str, pieces: Iterable[str], suggestions: Iterable[str] = ()) -> None:
        self.text, self.pieces, self.suggestions = text, tuple(pieces), tuple(suggestions)
        parts = " + ".join(map(repr, self.pieces)) or "nothing"
        near = ", ".join(map(repr, self.suggestions))
        super().__init__(
            f"{text!r} must be one token and is {len(self.pieces)}: {parts}."
            + (f" Single tokens near it: {near}." if near else " Choose another word.")
        )


class OptionError(WorkbenchError, ValueError):
    """An argument outside what it may be; says which, what is allowed and what came."""

    def __init__(self, option: str, allowed: str, got: object) -> None:
        self.option, self.allowed, self.got = option, allowed, got
        super().__init__(f"{option} must be {allowed}, got {_brief(got)}.")


def _brief(value: object) -> str:
    """A value in a message: a model or a long list would bury what is said of it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:160]}… ({type(value).__name__})"


class ShapeError(WorkbenchError, ValueError):
    """A tensor of the wrong shape, dtype or device at a named place."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        self.where, self.expected, self.got = where, expected, got
        super().__init__(f"{where}: expected {expected}, got {got}.")


class AlignmentError(WorkbenchError, ValueError):
    """Clean and corrupt prompts that do not match token by token."""


class EmptySelectionError(WorkbenchError, ValueError):
    """A selection of sites, positions or examples that selects none."""


class FormatError(WorkbenchError, ValueError):
    """A file or JSON text that is not what it should be."""


class MismatchError(WorkbenchError, ValueError):
    """What lies on disk was made under other conditions; says each that differs."""

    def __init__(self, where: object, differences: Mapping[str, tuple[object, object]]) -> None:
        self.where, self.differences = where, dict(differences)
        parts = (
            f"{name} is {_brief(found)}, expected {_brief(expected)}"
            for name, (found, expected) in differences.items()
        )
        super().__init__(f"{where} holds something else: {'; '.join(parts)}. Use another folder.")


class BusyError(WorkbenchError, RuntimeError):
    """Another process, or another thread of this one, is writing to the same place."""


class StorageError(WorkbenchError, OSError):
    """A disk that is full or cannot be written to; what was written whole before stays."""


class NotReplayableError(WorkbenchError, ValueError):
    """A plan with a bare function had to be saved or replayed, which only data can be."""


class CancelledError(WorkbenchError, RuntimeError):
    """The caller's own check asked a long computation to stop."""


class NeverActedError(WorkbenchError, RuntimeError):
    """An intervention that never acted, and why it could not."""


class InPlaceEditError(WorkbenchError, RuntimeError):
    """A tap wrote into the activation it was given instead of returning a copy."""

    def __init__(self, site: object) -> None:
        self.site = site
        super().__init__(f"A tap wrote into the activation at {site}; return a copy.")


class ConvergenceError(WorkbenchError, RuntimeError):
    """A fit that did not reach its tolerance; nothing may be concluded from where it stopped."""


class UnfinishedError(WorkbenchError, RuntimeError):
    """The result was read of something that goes on, or that an error or its reader ended."""


class NotRecordedError(WorkbenchError, LookupError):
    """An activation was read that the run did not record."""


class MemoryLimitError(WorkbenchError, MemoryError):
    """A run that would take more memory than there is, refused before it runs."""


class NotPicklableError(WorkbenchError, TypeError):
    """An object that refers to a model, whose weights a pickle would copy."""


class MissingDependencyError(WorkbenchError, ImportError):
    """An optional package is needed and not installed; names the extra that brings it."""


class NonFiniteError(WorkbenchError, ArithmeticError):
    """A value that is not finite, and the place where it first appeared."""

    def __init__(self, where: object, bad: int, total: int) -> None:
        self.where, self.bad, self.total = where, bad, total
        super().__init__(
            f"{where}: {bad} of {total} values are not finite; try float32, or a smaller strength."
        )
