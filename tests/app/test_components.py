"""What travels to the browser: exact where it is small, in bytes where it is large, JSON always."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from app.components import heat as module
from app.components.heat import levels, wire
from app.views.figures import Heat

FOLDER = Path(module.__file__).parent


def figure(values, **options):
    rows, columns = values.shape
    return Heat(
        values=values,
        label="a figure",
        rows=tuple(f"r{i}" for i in range(rows)),
        columns=tuple(f"c{i}" for i in range(columns)),
        row_title="row",
        column_title="column",
        unit="",
        **options,
    )


def opened(data: bytes):
    size = int(np.frombuffer(data[:4], "<u4")[0])
    head = json.loads(data[4 : 4 + size])
    cells = np.frombuffer(data[4 + size :], "<f4" if head["type"] == "f4" else "u1")
    return head, cells.reshape(head["shape"])


def test_small_figures_travel_exactly():
    values = np.array([[0.1, np.nan], [0.7, 1.0]], "f4")
    head, cells = opened(wire(figure(values), "file"))
    np.testing.assert_array_equal(cells, values)
    assert (head["rows"], head["file"]) == (["r0", "r1"], "file")


def test_layers_grow_upward_and_picks_with_them():
    values = np.arange(6, dtype="f4").reshape(3, 2)
    head, cells = opened(wire(figure(values, upward=True, picked=(0, 1), marked=((2, 0),)), "f"))
    np.testing.assert_array_equal(cells, values[::-1])
    assert head["rows"] == ["r2", "r1", "r0"]
    assert (head["pick"], head["marked"]) == ([2, 1], [[0, 0]])


def test_a_mosaics_tiles_keep_their_own_orientation():
    tiles = np.arange(2 * 3 * 3, dtype="f4").reshape(
        6, 3
    )  # two tiles of 3 x 3, one above the other
    data = Heat(
        values=tiles,
        label="",
        rows=("0", "1"),
        columns=("0",),
        row_title="layer",
        column_title="head",
        unit="",
        upward=True,
        tile=(3, 3),
    )
    _, cells = opened(wire(data, "f"))
    np.testing.assert_array_equal(cells, np.concatenate([tiles[3:], tiles[:3]]))


def test_large_figures_travel_in_bytes_and_masked_is_not_zero():
    values = np.full((200, 200), 0.5, "f4")
    values[0, 0], values[0, 1], values[0, 2] = np.nan, 0.0, 1.0
    head, cells = opened(wire(figure(values), "f"))
    assert head["type"] == "u1"
    assert cells[0, :3].tolist() == [0, 1, 255]
    assert cells[1, 1] == 128


def test_levels_clip_what_is_outside():
    assert levels(np.array([-5.0, 5.0]), 0.0, 1.0).tolist() == [1, 255]
    assert levels(np.array([2.0]), 2.0, 2.0).tolist() == [1]


SCRIPTS = sorted(FOLDER.glob("*.js"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_write_text_as_text(script):
    source = script.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source)
    assert "http://" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in source


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name[0] != "_"], ids=lambda f: f.name)
def test_every_script_has_its_python(script):
    assert script.with_suffix(".py").exists()
