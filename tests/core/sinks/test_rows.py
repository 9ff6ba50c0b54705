"""Every row, once, in the order of the harvest."""

import pytest
import torch

from tests import tiny
from tests.core.sinks.pushed import SITE, in_pieces, push, where
from workbench.core.errors import AlignmentError, ShapeError
from workbench.core.sinks import Rows


@pytest.mark.parametrize("seed", range(3))
def test_rows_come_in_order_however_they_were_pushed(seed: int) -> None:
    values = tiny.normal(40, 5, seed=seed)
    for sink in in_pieces(Rows, values, seed):
        table = sink.finish()[SITE]
        assert torch.equal(table.rows, values)
        assert table.where.row.tolist() == list(range(40))
        assert table.where.token.tolist() == list(range(100, 140))


def test_a_row_that_comes_twice_is_refused() -> None:
    values = tiny.normal(4, 5)
    sink = push(Rows(), values, [0, 1, 2, 1], [2, 2])
    with pytest.raises(AlignmentError, match=r"1 rows were pushed twice, such as 1\."):
        sink.finish()


def test_a_merge_changes_neither_sink() -> None:
    values = tiny.normal(4, 5)
    one, other = push(Rows(), values, [0, 1], [2]), push(Rows(), values, [2, 3], [2])
    assert len(one.merge(other).finish()[SITE].rows) == 4
    assert [len(sink.finish()[SITE].rows) for sink in (one, other)] == [2, 2]


def test_rows_that_do_not_fit_are_refused() -> None:
    sink = push(Rows(), tiny.normal(4, 5), [0, 1], [2])
    with pytest.raises(ShapeError, match="expected 5 columns, as before, got 6"):
        sink.push(SITE, tiny.normal(1, 6), where(torch.tensor([2])))
    with pytest.raises(ShapeError, match="expected 2, as `where` tells, got 1"):
        sink.push(SITE, tiny.normal(1, 5), where(torch.tensor([2, 3])))
