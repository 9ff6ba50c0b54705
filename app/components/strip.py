"""The token strip: the prompt as the model sees it; a click or Enter picks the position read."""

from collections.abc import Callable, Sequence
from typing import Final

from app.components._mount import fired, register
from app.views.words import shown

_STRIP: Final = register("strip")


def strip(
    tokens: Sequence[str],
    *,
    key: str,
    selected: int,
    edits: Sequence[int],
    on_pick: Callable[[int], None],
) -> None:
    """Shows tokens with their positions; `edits` are positions that the plan changes."""

    def picked() -> None:
        position = fired(key, "pick")
        if isinstance(position, int) and 0 <= position < len(tokens):
            on_pick(position)

    data = {
        "tokens": [shown(token) for token in tokens],
        "selected": selected,
        "edits": list(edits),
        "label": f"{len(tokens)} tokens of the prompt; arrows move, Enter picks the position read",
    }
    _STRIP(key=key, data=data, on_pick_change=picked)
