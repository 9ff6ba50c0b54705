"""Choosing the next token: a frozen sampler, and one random generator per row.

Notable: a row's draws depend on its own seed alone, never on what else is in the batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.options import count, indices, number

_LARGEST_SEED = 2**63 - 1


@final
@dataclass(frozen=True)
class Sampler:
    """Greedy at temperature 0; else a draw from the tempered, truncated distribution.

    `top_k` keeps the k likeliest tokens, then `top_p` the fewest whose probabilities reach p (the
    one that crosses p included).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            OptionError: If one is outside its range.
        """
        if number("temperature", self.temperature) < 0:
            raise OptionError("temperature", "0 or more", self.temperature)
        if self.top_k is not None:
            count("top_k", self.top_k)
        if self.top_p is not None and not 0 < number("top_p", self.top_p) <= 1:
            raise OptionError("top_p", "above 0 and at most 1", self.top_p)

    def choose(
        self, logits: Float[Tensor, "batch d_vocab"], draws: "Sequence[torch.Generator]"
    ) -> Int[Tensor, " batch"]:
        """The next token of each row."""
        if self.temperature == 0:
            return logits.argmax(-1)
        below = logits.double() - logits.amax(-1, keepdim=True)  # 0 at most: nothing overflows
        kept = self._truncate((below / float(self.temperature)).float()).softmax(-1)
        chosen = [
            torch.multinomial(row, 1, generator=g) for row, g in zip(kept, draws, strict=True)
        ]
        return torch.cat(chosen)

    def _truncate(self, logits: Tensor) -> Tensor:
        out = float("-inf")
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            top = logits.topk(self.top_k)  # k of them, also where some are equal
            logits = torch.full_like(logits, out).scatter(1, top.indices, top.values)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(descending=True, stable=True)
            mass = ordered.softmax(-1)
            before = mass.cumsum(-1) - mass
            cut = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= self.top_p)
            logits = logits.masked_fill(cut, out)
        return logits


def choose(
    samplers: Sequence[Sampler],
    logits: Float[Tensor, "batch d_vocab"],
    draws: Sequence[torch.Generator],
) -> Int[Tensor, " batch"]:
    """The next token of each row, by its own sampler; rows of one sampler are worked on at once."""
    kinds = dict.fromkeys(samplers)
    if len(kinds) == 1:
        return samplers[0].choose(logits, draws)
    chosen = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    for kind in kinds:
        rows = [row for row, sampler in enumerate(samplers) if sampler == kind]
        chosen[rows] = kind.choose(logits[rows], [draws[row] for row in rows])
    return chosen


def generators(seed: int | Sequence[int], rows: int, device: torch.device) -> list[torch.Generator]:
    """One generator per row: row i of an integer seed gets seed + i; a sequence names each.

    Raises:
        OptionError: If a sequence of seeds is not one per row, or a seed is out of range.
    """
    given = indices("seed", seed)
    seeds = [given[0] + row for row in range(rows)] if not isinstance(seed, Iterable) else given
    if len(seeds) != rows:
        raise OptionError("seed", f"an integer or {rows} integers, one per row", list(seeds))
    if any(not 0 <= one <= _LARGEST_SEED for one in seeds):
        raise OptionError("seed", f"within 0…{_LARGEST_SEED}", list(seeds))
    return [torch.Generator(device).manual_seed(one) for one in seeds]
