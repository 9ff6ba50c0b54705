"""Small line charts in SVG: probability by layer, metric by strength."""

import math
from collections.abc import Callable
from typing import Final

from app.components._mount import fired, register
from app.views.figures import Lines
from app.views.words import plain

_LINES: Final = register("lines")


def lines(
    figure: Lines,
    *,
    key: str,
    height: int = 260,
    on_pick: Callable[[int], None] | None = None,
) -> None:
    """Shows curves; a picked step comes back as its index."""

    def picked() -> None:
        step = fired(key, "pick")
        if on_pick is not None and isinstance(step, int) and 0 <= step < len(figure.steps):
            on_pick(step)

    data = {
        "label": figure.label,
        "steps": list(figure.steps),
        "step_title": figure.step_title,
        "value_title": figure.value_title,
        "low": figure.low,
        "high": figure.high,
        "upward": figure.upward,
        "picked": figure.picked,
        "pickable": on_pick is not None,
        "ticks": [list(tick) for tick in figure.ticks],
        "height": height,
        "lines": [
            {
                "name": line.name,
                "tone": line.tone,
                "literal": line.tone in ("target", "foil"),
                "values": [float(v) if math.isfinite(v) else None for v in line.values],
                "texts": list(line.texts) or [plain(float(v)) for v in line.values],
            }
            for line in figure.lines
        ],
    }
    _LINES(key=key, data=data, on_pick_change=picked)
