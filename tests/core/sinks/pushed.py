"""Rows made up for the sinks, and ways to push them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.core.reading import Where
from workbench.core.sites import Site

SITE = Site.parse("blocks.1.hook_resid_post")


def where(rows: Tensor) -> Where:
    """What rows of these numbers were read of: two of each text."""
    return Where(rows, rows // 2, rows % 2, rows + 100)


def push(sink: Any, values: Tensor, order: Sequence[int], sizes: Sequence[int]) -> Any:
    """The sink, after these rows of `values` came in this order, so many at a time."""
    for rows in torch.tensor(list(order)).split(list(sizes)):
        sink.push(SITE, values[rows], where(rows))
    return sink


def in_pieces(make: Callable[[], Any], values: Tensor, seed: int) -> tuple[Any, Any]:
    """All rows pushed at once; and in random order and pieces into three sinks, merged."""
    draws = torch.Generator().manual_seed(seed)
    n = len(values)
    order = torch.randperm(n, generator=draws).tolist()
    first, second = sorted(torch.randint(1, n, (2,), generator=draws).tolist())
    parts = [order[:first], order[first:second], order[second:]]
    one, two, three = (push(make(), values, part, _sizes(len(part), draws)) for part in parts)
    return push(make(), values, range(n), [n]), one.merge(two).merge(three)


def _sizes(n: int, draws: torch.Generator) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < n:
        sizes.append(min(int(torch.randint(1, 9, (), generator=draws)), n - sum(sizes)))
    return sizes
