"""The metric and the plan: what the interventions do, and each of them as a chip."""

from collections.abc import Callable, Mapping
from typing import Final

from app.components._mount import fired, register
from app.views.frame import BarView

_BAR: Final = register("bar")


def bar(
    view: BarView,
    *,
    key: str,
    on_remove: Callable[[int], None],
    on_move: Callable[[int, int], None],
    on_bypass: Callable[[], None],
) -> None:
    """Shows the live metric beside the plan tray."""

    def acted() -> None:
        action = fired(key, "act")
        if not isinstance(action, Mapping):
            return
        match dict(action):
            case {"do": "remove", "index": int() as index} if 0 <= index < len(view.plan):
                on_remove(index)
            case {"do": "move", "index": int() as index, "to": int() as to} if 0 <= index < len(
                view.plan
            ) and 0 <= to < len(view.plan):
                on_move(index, to)
            case {"do": "bypass"}:
                on_bypass()
            case _:
                return

    data = {
        "name": [[span.text, span.kind] for span in view.name],
        "before": view.before,
        "after": view.after,
        "unit": view.unit,
        "how": [[span.text, span.kind] for span in view.how],
        "plan": [{"label": c.label, "receipt": c.receipt, "title": c.title} for c in view.plan],
        "bypass": view.bypass,
        "empty": view.empty,
    }
    _BAR(key=key, data=data, on_act_change=acted)
