"""Where the tokens of one pass stand, and what a scope is: a choice among them.

Notable: positions are *absolute content positions* (pads do not count, cached tokens do), and a
scope looks at no token beyond the one it decides on, so that it means the same in a prompt, in a
decode step, in chunks, and under padding on either side.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.core.axes import Positions, Real, Tokens
from workbench.core.errors import OptionError

Mask = Bool[Tensor, "batch pos"]
Content = Int[Tensor, "batch position"]
Keys = Int[Tensor, "batch key"]


@dataclass(frozen=True, eq=False)
class Place:
    """The positions of one pass: absolute, per row, with the length of each row's prompt.

    What the tokens *are* is known where the pass begins at position 0 (`tokens`), or where the
    run tells it (`said`, by absolute position, -1 where a row has no token yet). `keys` are the
    positions of the keys, -1 for pads, where those of a row stand with gaps between them.
    """

    positions: Positions
    real: Real | None  # None: no pads
    prompt: Int[Tensor, " batch"]
    low: int  # the lowest and highest position of any row, as plain numbers: scopes decide by
    high: int  # them without looking into a tensor
    prompt_low: int
    prompt_high: int
    tokens: Tokens | None = None
    said: Content | None = None
    keys: Keys | None = None

    @property
    def from_start(self) -> bool:
        """Whether column i of every row is position i."""
        return self.real is None and self.low == 0 and self.high == self.positions.shape[1] - 1

    @cached_property
    def content(self) -> Content:
        """The tokens of each row by absolute position, -1 where there is none.

        Raises:
            OptionError: If this pass is a continuation that was not told what came before.
        """
        if self.said is not None:
            return self.said
        if self.tokens is None:
            raise OptionError("positions", "other than by tokens: this pass knows none before", "")
        found = torch.full_like(self.tokens[:, :1], -1).repeat(1, self.high + 1)
        if self.real is None:
            return found.scatter(1, self.positions, self.tokens)
        rows = torch.arange(len(found), device=found.device)[:, None].expand_as(self.tokens)
        return found.index_put((rows[self.real], self.positions[self.real]), self.tokens[self.real])

    def only(self, chosen: Mask) -> "Place":
        """The same, where nothing but the `chosen` tokens count; others stand among them."""
        low = int(self.positions[chosen].min())
        positions = torch.where(chosen, self.positions, low)
        ends = int(positions.max()), self.prompt_low, self.prompt_high
        return Place(positions, chosen, self.prompt, low, *ends, keys=self.keys)

    def of(self, rows: Sequence[int]) -> "Place":
        """The same for some rows only, in their order."""
        at = list(rows)
        positions, prompt = self.positions[at], self.prompt[at]
        return Place(
            positions,
            None if self.real is None else self.real[at],
            prompt,
            int(positions.min()),
            int(positions.max()),
            int(prompt.min()),
            int(prompt.max()),
            None if self.tokens is None else self.tokens[at],
            None if self.said is None else self.said[at],
            None if self.keys is None else self.keys[at],
        )


class Scope(ABC):
    """The positions at which an intervention acts."""

    kind: ClassVar[str]

    @abstractmethod
    def select(self, place: Place) -> bool | Mask:
        """All, none, or which positions of this pass; pads may be among them.

        A row is decided by its own tokens alone, and a position by those up to it.
        """

    @abstractmethod
    def to_json(self) -> dict[str, object]:
        """The scope as plain data; `scope_from_json` reads it."""

    @abstractmethod
    def missed(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
        """Positions named one by one that no row of these prompt and total lengths reached."""


Selection = bool | Mask
