"""Logits computed where they are read: any use gives what whole logits give, and no more work."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from workbench.compat.transformer_lens import _logits
from workbench.compat.transformer_lens._logits import LazyLogits, Pool

ROWS, WIDTH, START, CELLS, WORDS = 2, 5, 2, 3, 7
BASE = tiny.normal(ROWS, WIDTH, WORDS, dtype=torch.float64)
STREAM = tiny.normal(CELLS * ROWS, WIDTH - START, 4, seed=1, dtype=torch.float64)
W_U = tiny.normal(4, WORDS, seed=2, dtype=torch.float64)


def whole(cell: int) -> Tensor:
    """One cell's logits."""
    own = STREAM[cell * ROWS : (cell + 1) * ROWS]
    return torch.cat([BASE[:, :START], own @ W_U], 1)


def pool() -> tuple[Pool, list[tuple[int, ...]]]:
    """A pool, and the shapes of what it unembeds."""
    shapes: list[tuple[int, ...]] = []

    def unembed(stream: Tensor) -> Tensor:
        shapes.append(tuple(stream.shape))
        return stream @ W_U

    return Pool(BASE, STREAM, unembed), shapes


USES: dict[str, Callable[[Tensor], Any]] = {
    "last": lambda x: x[:, -1],
    "last of one row": lambda x: x[1, -1],
    "one logit": lambda x: x[0, -1, 3],
    "two words": lambda x: x[:, -1, [3, 5]],
    "words as a tensor": lambda x: x[:, 3, torch.tensor([3, 5])],
    "range": lambda x: x[:, 1:4],
    "all but the last": lambda x: x[:, :-1],
    "every second": lambda x: x[:, ::2, 1:3],
    "ellipsis": lambda x: x[..., -1, :],
    "word of every position": lambda x: x[..., 2],
    "position of each row": lambda x: x[torch.arange(2), torch.tensor([2, -1])],
    "word of each row": lambda x: x[torch.arange(2), torch.tensor([1, 4]), torch.tensor([5, 6])],
    "row": lambda x: x[0],
    "mask": lambda x: x[torch.ones(2, 5, dtype=torch.bool)],
    "new axis": lambda x: x[:, None, -1],
    "nothing": lambda x: x[:, 5:],
    "log-probabilities": lambda x: x.log_softmax(-1)[:, -1],
    "function": lambda x: torch.softmax(x, dim=-1),
    "gather": lambda x: x.gather(2, torch.ones(2, 5, 1, dtype=torch.long)),
    "stacked": lambda x: torch.stack([x, x]),
    "named": lambda x: torch.sum(input=x, dim=1),
    "operators": lambda x: 2 * x - x / 3,
    "into": lambda x: torch.add(torch.ones_like(x), x, alpha=2),
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "list": lambda x: torch.tensor(x.tolist()),
    "iterated": lambda x: torch.stack(list(x)),
    "clone": lambda x: x.clone(),
    "pickled": lambda x: pickle.loads(pickle.dumps(x)),
    "rearranged": lambda x: x.mT.flatten(1),
    "loss": lambda x: torch.nn.functional.cross_entropy(
        x[:, :-1].flatten(0, 1), torch.arange(8) % 7
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("cell", range(CELLS))
def test_every_use_gives_what_whole_logits_give(use: str, cell: int) -> None:
    lazy = pool()[0].cell(cell)
    given, expected = USES[use](lazy), USES[use](whole(cell))
    assert not isinstance(given, LazyLogits)
    torch.testing.assert_close(given, expected, check_dtype=use != "list")


def test_its_looks_are_those_of_whole_logits_and_compute_nothing() -> None:
    made, shapes = pool()
    lazy = made.cell(0)
    assert isinstance(lazy, Tensor)
    assert lazy.shape == lazy.size() == (2, 5, 7)
    assert (lazy.ndim, lazy.dim(), lazy.numel(), len(lazy)) == (3, 3, 70, 2)
    assert (lazy.dtype, lazy.device) == (BASE.dtype, BASE.device)
    assert lazy.shape[-1] == 7
    assert shapes == []


def test_one_position_is_computed_for_all_cells_at_once() -> None:
    made, shapes = pool()
    for cell in range(CELLS):
        tiny.close(made.cell(cell)[:, -1], whole(cell)[:, -1])
        tiny.close(made.cell(cell)[:, 0], BASE[:, 0])
    assert shapes == [(6, 1, 4)]


def test_few_cells_are_computed_at_once_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_logits, "_NUMBERS", 2 * 3 * WORDS)
    made, shapes = pool()
    for cell in (0, 1, 2, 0):
        tiny.close(made.cell(cell) + 0, whole(cell))
    assert shapes == [(2, 3, 4)] * 4


def test_a_position_that_there_is_not_is_an_index_error() -> None:
    for position in (5, -6):
        with pytest.raises(IndexError, match=f"Position {position}"):
            pool()[0].cell(0)[:, position]
    with pytest.raises(IndexError):
        pool()[0].cell(0)[0, 0, 0, 0]
