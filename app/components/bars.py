"""Rows with a bar each: next tokens, components; a row can be picked or acted upon."""

from collections.abc import Callable, Mapping
from typing import Final

from app.components._mount import fired, register
from app.views.figures import Bars

_BARS: Final = register("bars")


def bars(
    figure: Bars,
    *,
    key: str,
    on_act: Callable[[str, int], None] | None = None,
    pickable: bool = False,
) -> None:
    """Shows a bar chart; a click comes back as the action's name (`pick` for a row) and the row."""

    def acted() -> None:
        match fired(key, "act"):
            case Mapping() as action if on_act is not None:
                name, index = action.get("do"), action.get("index")
                known = name == "pick" or name in dict(figure.actions)
                if known and isinstance(index, int) and 0 <= index < len(figure.rows):
                    on_act(str(name), index)
            case _:
                return

    data = {
        "label": figure.label,
        "signed": figure.signed,
        "most": figure.most,
        "picked": figure.picked,
        "pickable": pickable,
        "actions": [list(action) for action in figure.actions],
        "rows": [
            {
                "label": row.label,
                "value": row.value,
                "text": row.text,
                "tone": row.tone,
                "detail": row.detail,
                "before": row.before,
                "literal": row.literal,
                "active": row.active,
            }
            for row in figure.rows
        ],
    }
    _BARS(key=key, data=data, on_act_change=acted)
