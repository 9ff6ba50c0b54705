"""The heat map and the mosaic: one canvas, whose cells can be hovered, walked and picked."""

import json
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from app.components._mount import fired, register
from app.views.figures import Array, Heat

EXACT: Final = 16384  # cells up to which numbers travel exactly; beyond, in 254 levels
_HEAT: Final = register("heat")


def heat(
    figure: Heat, *, key: str, file: str, on_pick: Callable[[int, int], None] | None = None
) -> None:
    """Shows a figure; a picked cell (of a mosaic: a tile) comes back as its row and column."""
    count = len(figure.rows)

    def picked() -> None:
        match fired(key, "pick"):
            case [int() as row, int() as column] if on_pick is not None:
                row = count - 1 - row if figure.upward else row
                if 0 <= row < count and 0 <= column < len(figure.columns):
                    on_pick(row, column)
            case _:
                return

    _HEAT(key=key, data=wire(figure, file), on_pick_change=picked)


def wire(figure: Heat, file: str) -> bytes:
    """The figure as the canvas reads it: u32 n | n bytes of JSON | the cells."""
    head, cells = _oriented(figure)
    exact = cells.size <= EXACT
    head |= {"shape": cells.shape, "type": "f4" if exact else "u1", "file": file}
    body = cells.astype("<f4") if exact else levels(cells, figure.low, figure.high)
    text = json.dumps(head).encode()
    return np.uint32(len(text)).tobytes() + text + body.tobytes()


def levels(cells: Array, low: float, high: float) -> Array:
    """Cells in one byte each: 0 where there is none, 1 to 255 from `low` to `high`."""
    share = np.clip((cells - low) / ((high - low) or 1.0), 0, 1)
    return np.where(np.isnan(cells), 0, 1 + np.rint(254 * np.nan_to_num(share))).astype("u1")


def _oriented(figure: Heat) -> tuple[dict[str, Any], Array]:
    tile = figure.tile or (1, 1)
    count = len(figure.rows)

    def up(row: int) -> int:
        return count - 1 - row if figure.upward else row

    order = [up(row) for row in range(count)]
    blocks = figure.values.reshape(count, tile[0], -1)[order]
    head = {
        "label": figure.label,
        "rows": [figure.rows[row] for row in order],
        "columns": list(figure.columns),
        "row_title": figure.row_title,
        "column_title": figure.column_title,
        "unit": figure.unit,
        "legend": figure.note or figure.unit,
        "low": figure.low,
        "high": figure.high,
        "signed": figure.signed,
        "upward": figure.upward,
        "texts": [list(figure.texts[row]) for row in order] if figure.texts else None,
        "pick": [up(figure.picked[0]), figure.picked[1]] if figure.picked else None,
        "marked": [[up(row), column] for row, column in figure.marked],
        "tile": list(figure.tile) if figure.tile else None,
        "labels": figure.column_labels,
        "cell": list(figure.cell),
        "height": figure.cell_height,
    }
    return head, blocks.reshape(figure.values.shape)
