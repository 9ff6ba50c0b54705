"""The account of a run: how often each intervention of a plan acted, where, and how far it went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from workbench.core.banks import Bank
from workbench.core.gating import Places, Verdicts
from workbench.core.plan import Plan
from workbench.core.sites import Site

Counts = Mapping[tuple[int, ...], tuple[int, ...]]  # tokens by the interventions of a bank


@final
@dataclass(frozen=True)
class Receipt:
    """What one intervention of a plan did in a run.

    `acted` counts the passes and sites where it selected at least one token, `tokens` the tokens
    it touched, and `change` is the root of the summed squares of all it changed, in the unit of
    the activation.
    """

    intervention: str
    acted: int
    tokens: int
    change: float


@final
class Ledger:
    """The growing account of one run; `receipts` closes it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._acted = [0] * len(plan)
        self._tokens: list[list[Tensor | int]] = [[] for _ in plan]
        self._squares: list[list[Tensor | float]] = [[] for _ in plan]
        self._passes: list[tuple[list[Site], Mapping[Site, Bank], Counts]] = []
        self.verdicts = Verdicts()

    def note(self, index: int, tokens: Tensor | int, squares: Tensor | float) -> None:
        """Adds one act; keeps tensors, so that a decode step never waits for a number."""
        self._acted[index] += 1
        self._tokens[index].append(tokens)
        self._squares[index].append(squares)

    def note_all(
        self, indices: Sequence[int], counts: Sequence[int], squares: Sequence[float]
    ) -> None:
        """Adds an act of several interventions; `squares` are of one token each."""
        for index, count, square in zip(indices, counts, squares, strict=True):
            if count:
                self._acted[index] += 1
                self._tokens[index].append(count)
                self._squares[index].append(count * square)

    def follow(self, passed: list[Site], banks: Mapping[Site, Bank], counts: Counts) -> None:
        """Adds, when it is asked, an act of the bank of each site that will be in `passed`.

        A pass goes on filling its list: one entry a site is all that it spends on its account.
        """
        self._passes.append((passed, banks, counts))

    def _settle(self) -> None:
        for passed, banks, counts in self._passes:
            while passed:
                bank = banks[passed.pop()]
                self.note_all(bank.indices, counts[bank.indices], bank.squares)

    def absorb(self, other: "Ledger", places: Places, n: int) -> None:
        """Adds the account of a run of one row that stood for several of `n`.

        Of each of its interventions, `places` say which ones of ours it was, in which rows.
        """
        self.verdicts.absorb(other.verdicts, places, n)
        for mine, (acted, tokens, squares) in zip(places, other.totals(), strict=True):
            for index, rows in mine.items():
                self._acted[index] += acted
                self._tokens[index].append(tokens * len(rows))
                self._squares[index].append(squares * len(rows))

    def add(self, other: "Ledger", indices: Sequence[int]) -> None:
        """Adds the account of other rows' run; `indices` are its plan's places in ours."""
        for index, (acted, tokens, squares) in zip(indices, other.totals(), strict=True):
            self._acted[index] += acted
            self._tokens[index].append(tokens)
            self._squares[index].append(squares)

    def totals(self) -> tuple[tuple[int, int, float], ...]:
        """How often each intervention acted, on how many tokens, and the squares of its change."""
        self._settle()
        return tuple(
            (acted, sum(map(int, tokens)), float(sum(map(float, squares))))
            for acted, tokens, squares in zip(self._acted, self._tokens, self._squares, strict=True)
        )

    def receipts(self) -> tuple[Receipt, ...]:
        """One receipt per intervention, in the order of the plan."""
        return tuple(
            Receipt(str(one), acted, tokens, squares**0.5)
            for one, (acted, tokens, squares) in zip(self._plan, self.totals(), strict=True)
        )
