"""The foot of a figure: its checks, and, one click away, its method, table and Python."""

from typing import Final

from app.codec import encode
from app.components._mount import register
from app.views.figures import Foot

_FOOT: Final = register("foot")


def foot(view: Foot, *, key: str) -> None:
    """Shows checks, method, table and code below a figure."""
    data = {
        "checks": [
            {"name": c.name, "value": c.value, "note": c.note, "good": c.good} for c in view.checks
        ],
        "method": view.method,
        "code": view.code,
        "table": encode(view.table),
    }
    _FOOT(key=key, data=data)
