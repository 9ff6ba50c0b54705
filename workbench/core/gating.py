"""What the gates of one run read and remember, and the tap that reads for them.

Notable: an intervention asks its gate in every pass, even where its scope selects nothing: the
prompt's end, which decides for all that follows, may stand in a pass without a selected token.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.gates import Gate, Weights
from workbench.core.plan import Plan
from workbench.core.protocols import Model
from workbench.core.sites import Site, one_site
from workbench.core.standing import Place, Selection
from workbench.core.tap import Tap

Rows = tuple[Sequence[int], int]  # an intervention's own, and how many the batch has
Places = Sequence[Mapping[int, Sequence[int]]]  # of interventions in a plan, for which rows


def readings(
    plan: Plan, by_site: Mapping[Site, Sequence[int]], model: Model
) -> Mapping[Site, tuple[int, ...]]:
    """Where the gates of a plan read that do so at another site than their own.

    Raises:
        UnknownNameError: If a gate reads at a site the model has not.
        OptionError: If one reads after an intervention it should let through.
    """
    order = {site: place for place, site in enumerate(model.sites)}
    found: dict[Site, list[int]] = {}
    for index, one in enumerate(plan):
        if one.gate is None:
            continue
        acting = [site for site, indices in by_site.items() if index in indices]
        if one.gate.site is None:
            _check_own(index, acting)
            continue
        read = one_site(one.gate.site, model.sites)
        for site in acting:
            if order[site] < order[read]:
                raise OptionError(f"plan[{index}].gate", f"read at {site} or before", str(read))
        if any(site != read for site in acting):
            found.setdefault(read, []).append(index)
    return MappingProxyType({site: tuple(indices) for site, indices in found.items()})


def _check_own(index: int, acting: Sequence[Site]) -> None:
    """Refuses to read a gate where tokens have no activation of their own.

    Raises:
        OptionError: If one of the sites has keys.
    """
    if keyed := [str(site) for site in acting if site.axes[1] != "pos"]:
        where = "read, by site=, where each token has one activation"
        raise OptionError(f"plan[{index}].gate", where, keyed[0])


@final
class GateTap(Tap):
    """Shows gates what they read, as the run goes on with it: after the plan's changes there."""

    def __init__(
        self, plan: Plan, reads: Mapping[Site, Sequence[int]], verdicts: "Verdicts"
    ) -> None:
        self._plan, self._reads, self._verdicts = plan, reads, verdicts

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        for index in self._reads.get(site, ()):
            one = self._plan[index]
            assert one.gate is not None  # or it would not read
            part = value if one.rows is None else value[list(one.rows)]
            self._verdicts.read(index, one.gate, part, site)
        return value

    @override
    def wants(self, site: Site) -> bool:
        return site in self._reads


@final
class Verdicts:
    """What the gates of one run have read, by intervention and row; owned by it, as its ledger."""

    def __init__(self) -> None:
        self._scores: dict[int, Weights] = {}  # of the pass at hand, at a gate's own site
        self._weights: dict[int, Weights] = {}  # the same, once they are decided
        # A prompt's score, or whether it is shut for good; by the site, where that is the own one.
        self._kept: dict[tuple[int, Site | None], Tensor] = {}

    def read(self, index: int, gate: Gate, value: Tensor, site: Site) -> None:
        """Takes the activations of an intervention's rows where its gate reads."""
        self._scores[index] = gate.score(value, site)
        self._weights.pop(index, None)

    def through(  # noqa: PLR0913 - what is decided, and on what
        self,
        index: int,
        gate: Gate,
        site: Site,
        value: Tensor,
        place: Place,
        tokens: Selection,
        rows: Rows,
    ) -> tuple[Place, Selection, Weights]:
        """The selected tokens at which a gate is open, and how far it is at each."""
        weights = self._weigh(index, gate, site, value, place, tokens, rows)
        if tokens is False:
            return place, False, weights  # asked all the same: a verdict may have fallen here
        is_open = weights > 0 if isinstance(tokens, bool) else (weights > 0) & tokens
        is_open = is_open if place.real is None else is_open & place.real
        if not bool(is_open.any()):
            return place, False, weights
        return place.only(is_open), is_open, weights

    def _weigh(  # noqa: PLR0913 - what is decided, and on what
        self,
        index: int,
        gate: Gate,
        site: Site,
        value: Tensor,
        place: Place,
        tokens: Selection,
        rows: Rows,
    ) -> Weights:
        """How much is let through at each token of the `rows`.

        Raises:
            OptionError: If this pass did not come by the site where the gate reads.
        """
        if gate.site is None or gate.site == site:
            return self._decide((index, site), gate, gate.score(value, site), place, tokens, rows)
        if index not in self._weights:
            if index not in self._scores:
                where = f"read where the run passes: it starts after {gate.site}"
                raise OptionError(f"plan[{index}].gate", where, gate)
            score = self._scores.pop(index)
            found = self._decide((index, None), gate, score, place, tokens, rows)
            self._weights[index] = found
        return self._weights[index]

    def absorb(self, other: "Verdicts", places: Places, n: int) -> None:
        """Takes what a run of one row remembers, for those it stood for in a batch of `n`."""
        for (own, site), one in other._kept.items():  # noqa: SLF001 - of our own kind
            for index, rows in places[own].items():
                kept = self._kept.get((index, site), one.new_zeros(n))
                at = torch.tensor(list(rows), device=one.device)
                self._kept[index, site] = kept.index_copy(0, at, one.expand(len(rows)))

    def _decide(
        self,
        key: tuple[int, Site | None],
        gate: Gate,
        score: Weights,
        place: Place,
        tokens: Selection,
        rows: Rows,
    ) -> Weights:
        if gate.hold == "token":
            return gate.opened(score)
        before = self._kept.get(key, score.new_zeros(rows[1]))
        before = torch.nn.functional.pad(before, (0, rows[1] - len(before)))
        at = torch.tensor(list(rows[0]), device=score.device)
        if gate.hold == "prompt":
            weights, after = _prompts(gate, score, place, before[at])
        else:
            weights, after = _latched(gate, score, place, tokens, before[at])
        self._kept[key] = before.index_copy(0, at, after)
        return weights


def _prompts(gate: Gate, score: Weights, place: Place, before: Tensor) -> tuple[Weights, Tensor]:
    """By the score of the prompt's last token, from it on; and that score."""
    ends = place.prompt[:, None] - 1
    here = place.positions == ends if place.real is None else (place.positions == ends) & place.real
    score = torch.where(here.any(1), torch.where(here, score, 0.0).sum(1), before)
    return torch.where(place.positions >= ends, gate.opened(score)[:, None], 0.0), score


def _latched(
    gate: Gate, score: Weights, place: Place, tokens: Selection, before: Tensor
) -> tuple[Weights, Tensor]:
    """Up to the first selected token whose score is not above 0; and whether there was one."""
    shut = gate.opened(score) == 0
    if isinstance(tokens, bool):
        shut = shut if tokens else torch.zeros_like(shut)
    else:
        shut = shut & tokens
    shut = shut if place.real is None else shut & place.real
    ever = (shut.cumsum(1) > 0) | (before[:, None] > 0)
    return (~ever).to(score), ever[:, -1].to(before)
