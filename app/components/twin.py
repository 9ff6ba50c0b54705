"""The twin stream: baseline beside steered, written token by token from the job's event stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from app.components._mount import fired, register

_TWIN: Final = register("twin")


@dataclass(frozen=True)
class Piece:
    """A written token: how far the plan moved its distribution (0 to 1), and where texts part."""

    text: str
    weight: float = 0.0
    apart: bool = False


@dataclass(frozen=True)
class Column:
    """One of the two continuations."""

    title: str
    note: str = ""


def twin(  # noqa: PLR0913 - what is written, whence, and what a click does
    prompt: str,
    columns: tuple[Column, Column],
    *,
    key: str,
    job: str | None,
    lane: str,
    total: int,
    done: tuple[Sequence[Piece], Sequence[Piece]] | None,
    state: str,
    on_end: Callable[[], None],
    on_stop: Callable[[], None],
) -> None:
    """Shows a job's stream while it runs, and what it wrote once it is done."""

    def ended() -> None:
        if fired(key, "end"):
            on_end()

    def stopped() -> None:
        if fired(key, "stop"):
            on_stop()

    data = {
        "prompt": prompt,
        "columns": [{"title": c.title, "note": c.note} for c in columns],
        "job": job,
        "lane": lane,
        "total": total,
        "state": state,
        "done": [[[p.text, p.weight, p.apart] for p in row] for row in done] if done else None,
    }
    _TWIN(key=key, data=data, on_end_change=ended, on_stop_change=stopped)
