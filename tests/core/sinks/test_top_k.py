"""The most extreme values and where they come from; of equal ones, always the first."""

import pytest
import torch

from tests import tiny
from tests.core.sinks.pushed import SITE, in_pieces, push, where
from workbench.core.errors import OptionError, ShapeError
from workbench.core.sinks import Top, TopK


def check(top: Top, values: torch.Tensor, k: int, largest: bool) -> None:
    """Against sorting each column by hand."""
    for column, cells in enumerate(values.T.tolist()):
        sign = -1 if largest else 1
        best = sorted(range(len(cells)), key=lambda row: (sign * cells[row], row))[:k]
        assert top.row[:, column].tolist() == best
        assert top.values[:, column].tolist() == [cells[row] for row in best]
        assert top.text[:, column].tolist() == [row // 2 for row in best]
        assert top.pos[:, column].tolist() == [row % 2 for row in best]
        assert top.token[:, column].tolist() == [row + 100 for row in best]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_they_are_those_of_a_sorted_column(seed: int, largest: bool, k: int) -> None:
    values = tiny.normal(50, 6, seed=seed)
    values[:, 1] = values[:, 1].round()  # many ties
    values[:, 2] = 0.0  # nothing else
    for sink in in_pieces(lambda: TopK(k, largest=largest), values, seed):
        check(sink.finish()[SITE], values, k, largest)


def test_a_merge_changes_neither_sink() -> None:
    values = tiny.normal(8, 3)
    one, other = push(TopK(2), values, [0, 1], [2]), push(TopK(2), values, range(2, 8), [6])
    check(one.merge(other).finish()[SITE], values, 2, True)
    check(one.finish()[SITE], values[:2], 2, True)
    assert TopK(2).merge(one).finish().keys() == {SITE}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="k must be 1 or more"):
        TopK(0)
    with pytest.raises(OptionError, match="other k or largest"):
        TopK(2).merge(TopK(3))
    sink = push(TopK(2), tiny.normal(8, 3), range(8), [8])
    with pytest.raises(ShapeError, match="3 columns"):
        sink.push(SITE, tiny.normal(1, 4), where(torch.tensor([9])))
    sink.push(SITE, tiny.normal(0, 3), where(torch.arange(0)))
    assert len(sink.finish()[SITE].row) == 2
