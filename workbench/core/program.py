"""A plan made ready for one model: which interventions act at which site, and what they did.

Notable: a `Program` is frozen and may be shared; the tap it gives for a pass and the ledger it
writes to belong to one run. A row, position, head or neuron that is not selected keeps its bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import DECODER
from workbench.core.banks import Bank, Constant, Part, Selected, constant_of, parts_of
from workbench.core.data import Batch
from workbench.core.errors import EmptySelectionError, NeverActedError, OptionError
from workbench.core.gates import Gate
from workbench.core.gating import GateTap, readings
from workbench.core.interventions import Intervention
from workbench.core.ledger import Ledger, Receipt
from workbench.core.masks import key_mask, mask_of, scheduled
from workbench.core.operands import check_like
from workbench.core.phrases import bound
from workbench.core.plan import Plan
from workbench.core.plan_checks import check_heads, check_readers
from workbench.core.protocols import Model
from workbench.core.sides import Side, on_side, place_on, side_of
from workbench.core.sites import Site, select
from workbench.core.standing import Place, Scope, Selection
from workbench.core.tap import UNTAPPED, Tap, chain


@final
@dataclass(frozen=True, eq=False)
class Program:
    """A plan whose sites are resolved on one model."""

    plan: Plan
    by_site: Mapping[Site, tuple[int, ...]]
    parts: Mapping[Site, tuple[Part, ...]]  # the same, with additions to several rows as one
    constant: Constant  # where nothing is done but one addition of one vector
    scopes: tuple[Scope, ...]  # of each intervention, as this model reads them
    reads: Mapping[Site, tuple[int, ...]]  # the interventions whose gates read at a site
    sides: Mapping[Side, "Program"]  # where there is an encoder: the part that acts on each side

    def first_block(self, model: Model) -> int:
        """The first block the plan changes: -1 for the embedding, `n_layers` after the blocks."""
        first = next((site for site in model.sites if site in self.by_site), None)
        return -1 if first is None else block_of(first, model)

    def last_block(self, model: Model) -> int:
        """The last block the plan changes, counted in the same way."""
        last = next((site for site in reversed(model.sites) if site in self.by_site), None)
        return -1 if last is None else block_of(last, model)

    def tap(self, batch: Batch, ledger: Ledger) -> Tap:
        """The tap that carries the plan out in one pass."""
        if not self.by_site:
            return UNTAPPED
        if self.sides:
            acting: Tap = SidesTap(self.sides, batch, ledger)
        else:
            acting = PlanTap(self, batch.place, ledger)
        return (
            chain(acting, GateTap(self.plan, self.reads, ledger.verdicts)) if self.reads else acting
        )

    def finish(
        self,
        ledger: Ledger,
        batch: Batch,
        ended: str,
        *,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Receipt, ...]:
        """The receipts, once every intervention has acted as it must.

        `lengths` are those of the finished texts, where they are longer than those of the `batch`.

        Raises:
            NeverActedError: If one that is not optional never acted.
            EmptySelectionError: If one names positions that no row has.
        """
        receipts = ledger.receipts()
        for i, (one, receipt) in enumerate(zip(self.plan, receipts, strict=True)):
            if one.optional:
                continue
            prompts, reached, keys = self._reach(i, batch, lengths)
            missed = (
                *one.positions.missed(prompts, reached),
                *(key for key in one.keys or () if key >= max(keys)),
            )
            if missed:
                raise EmptySelectionError(
                    f"plan[{i}], {one}: positions {list(missed)} are beyond the {max(reached)} "
                    "tokens of the run. Mark it optional if that is meant."
                )
            if not receipt.acted and one.size != 0:
                why = ended if one.gate is None else f"{ended}, or its gate was shut"
                raise NeverActedError(
                    f"plan[{i}], {one}, never acted: {why}. Mark it optional if that is meant."
                )
        return receipts

    def sides_of(self, index: int) -> frozenset[Side]:
        """The sides on which an intervention acts: the target, where there is no other."""
        return frozenset(
            side
            for side, part in self.sides.items()
            if any(index in indices for indices in part.by_site.values())
        ) or frozenset({Side.TARGET})

    def _reach(
        self, index: int, batch: Batch, lengths: Sequence[int] | None
    ) -> tuple[list[int], list[int], list[int]]:
        """Content tokens of the prompts, of the finished texts, and of what these look at.

        Of all rows, and of both sides where an intervention acts on both.
        """
        sides = self.sides_of(index)
        prompts: list[int] = []
        reached: list[int] = []
        for side in sides:
            own = on_side(batch, side)
            prompts += own.prompt.tolist()
            reached += own.ends.tolist() if lengths is None or own is not batch else lengths
        source = batch.source if Side.ACROSS in sides else None
        return prompts, reached, reached if source is None else source.ends.tolist()


def compile_plan(plan: Plan, model: Model, batch: int) -> Program:
    """Resolves the sites and checks rows, before anything runs.

    An intervention of strength 0 is left out here, so the run is bit-exact with one without it.

    Raises:
        UnknownNameError: If a site is not one of the model's.
        OptionError: If a row is outside the batch, a gate reads after it acts, or the plan changes
            both what the heads of a layer read and the norm that each of them reads it through.
    """
    by_site: dict[Site, list[int]] = {}
    for index, one in enumerate(plan):
        sites = select(one.sites, model.sites)
        if one.rows is not None and max(one.rows) >= batch:
            raise OptionError(f"plan[{index}].rows", f"below the {batch} rows of the run", one.rows)
        for site in sites:
            check_heads(one, site, model)
        if one.size == 0:
            continue
        for site in sites:
            by_site.setdefault(site, []).append(index)
    check_readers(plan, by_site)
    parts = {site: parts_of(plan, at, site, model, batch) for site, at in by_site.items()}
    whole = Program(
        plan,
        {site: tuple(indices) for site, indices in by_site.items()},
        parts,
        constant_of(parts, model.dtype),
        tuple(bound(one.positions, model.tokenizer) for one in plan),
        readings(plan, by_site, model),
        {},
    )
    return replace(whole, sides=_sides(whole, model)) if model.sizes.reads_source else whole


def _sides(whole: Program, model: Model) -> Mapping[Side, Program]:
    """The parts of a plan that act on each side of an encoder–decoder model.

    Raises:
        OptionError: If a gate reads on another side than it lets through, where tokens differ.
    """
    for read, indices in whole.reads.items():
        for index in indices:
            acting = [site for site, some in whole.by_site.items() if index in some]
            if other := [s for s in acting if side_of(s, model) is not side_of(read, model)]:
                raise OptionError(f"plan[{index}].gate", f"read on the side of {other[0]}", read)
    found: dict[Side, Program] = {}
    for side in Side:
        by_site = {s: at for s, at in whole.by_site.items() if side_of(s, model) is side}
        if by_site:
            parts = {site: whole.parts[site] for site in by_site}
            constant = constant_of(parts, model.dtype)
            found[side] = replace(whole, by_site=by_site, parts=parts, constant=constant)
    return found


def block_of(site: Site, model: Model) -> int:
    """The block a site is in: -1 before all of them, `n_layers` after them.

    A decoder's blocks are counted on from its encoder's, the last of which has all that follows it.
    """
    if site.layer is not None:
        return site.layer + (model.sizes.n_encoder_layers if site.stack == DECODER else 0)
    place = model.sites.index(site)
    before = [one for one in model.sites[:place] if one.layer is not None]
    if not before:
        return -1
    ended = all(one.layer is None for one in model.sites[place:])
    return model.sizes.n_layers if ended else block_of(before[-1], model)


@final
class SidesTap(Tap):
    """Carries a program out on an encoder–decoder model: at each site among the tokens it has."""

    def __init__(self, sides: Mapping[Side, Program], batch: Batch, ledger: Ledger) -> None:
        self._taps: dict[Site, PlanTap] = {}
        for side, program in sides.items():
            if side is Side.SOURCE and batch.encoded:  # no such site will be passed
                continue
            tap = PlanTap(program, place_on(batch, side), ledger)
            self._taps.update(dict.fromkeys(program.by_site, tap))

    @override
    def wants(self, site: Site) -> bool:
        return site in self._taps

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        tap = self._taps.get(site)
        return value if tap is None else tap(site, value)


@final
class PlanTap(Tap):
    """Carries a program out in one pass."""

    def __init__(self, program: Program, place: Place, ledger: Ledger) -> None:
        self._program, self._place, self._ledger = program, place, ledger
        self._parts = program.parts
        self._scopes: dict[Scope, Selection] = {}  # all made once per pass
        self._selected: dict[int, tuple[Place, Selection]] = {}
        self._banks: dict[tuple[int, ...], Selected] = {}
        self._passed: list[Site] = []
        self._vectors = self._constant()

    @override
    def wants(self, site: Site) -> bool:
        return site in self._parts

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        vector = self._vectors.get(site)
        if vector is not None:
            self._passed.append(site)
            return value + vector
        parts = self._parts.get(site)
        if parts is None:  # most sites, hundreds of times a pass
            return value
        for part in parts:
            value = (
                self._act(part, site, value) if isinstance(part, int) else self._add(part, value)
            )
        return value

    def _constant(self) -> Mapping[Site, Tensor]:
        """What is added at sites to every token of this pass, where that is all that is done.

        Weights push everything else out of the processor's cache at each layer, so what a decode
        step touches there counts more than what it computes.
        """
        constant = self._program.constant
        if not constant.n_rows or constant.n_rows - {1, len(self._place.prompt)}:
            return {}
        chosen = {indices: self._chosen(indices) for indices in constant.indices}
        if any(mask is not None or not all(counts) for mask, counts in chosen.values()):
            return {}
        counts = {indices: counts for indices, (_, counts) in chosen.items()}
        self._ledger.follow(self._passed, constant.banks, counts)
        return constant.vectors

    def _act(self, index: int, site: Site, value: Tensor) -> Tensor:
        one = self._program.plan[index]
        place, tokens = self._where(index, one)
        if tokens is False and one.gate is None:
            return value
        part = value if one.rows is None else value[list(one.rows)]
        factors = None if one.schedule is None else one.schedule.at(self._standing(one))
        if one.gate is not None:
            place, tokens, weights = self._through(index, one.gate, site, part)
            factors = weights if factors is None else factors * weights
        if tokens is False:
            return value
        new = one.operator(part, site, place, one.size)
        check_like(new, part, site)
        if factors is not None:
            new = scheduled(part, new, factors, site)
        mask = mask_of(one, tokens, site, part)
        if one.keys is not None:
            keys = key_mask(one.keys, self._standing(one), site, part)
            mask = keys if mask is None else mask & keys
        changed = new if mask is None else torch.where(mask, new, part)
        self._ledger.note(index, _count(tokens, place), _moved(changed.detach(), part.detach()))
        if one.rows is None:
            return changed
        rows = torch.tensor(one.rows, device=value.device)
        return value.index_copy(0, rows, changed)

    def _through(
        self, index: int, gate: Gate, site: Site, part: Tensor
    ) -> tuple[Place, Selection, Tensor]:
        """Where an intervention acts that has a gate, and how much of it is let through."""
        one, n = self._program.plan[index], len(self._place.prompt)
        standing, tokens = self._standing(one), self._where(index, one)[1]
        rows = (range(n) if one.rows is None else one.rows, n)
        return self._ledger.verdicts.through(index, gate, site, part, standing, tokens, rows)

    def _add(self, bank: Bank, value: Tensor) -> Tensor:
        selected = self._banks.get(bank.indices)
        if selected is None:
            selected = self._banks[bank.indices] = self._chosen(bank.indices)
        chosen, counts = selected
        if not any(counts):
            return value
        self._ledger.note_all(bank.indices, counts, bank.squares)
        return bank.add(value, chosen)

    def _chosen(self, indices: tuple[int, ...]) -> Selected:
        """Which tokens a bank touches, None for all of its rows', and how many of each vector."""
        width, rows = self._place.positions.shape[1], len(self._place.prompt)
        found = [self._select(index) for index in indices]
        at = [range(rows) if (r := self._program.plan[i].rows) is None else r for i in indices]
        if all(one is True for one in found):
            return None, tuple(len(some) * width for some in at)
        mask = torch.zeros_like(self._place.positions, dtype=torch.bool)
        for one, some in zip(found, at, strict=True):
            if one is not False:
                mask[list(some)] = one[list(some)] if isinstance(one, Tensor) else True
        by_row = mask.sum(1).tolist()
        return mask[:, :, None], tuple(sum(by_row[row] for row in some) for some in at)

    def _standing(self, one: Intervention) -> Place:
        """Where all tokens of its rows stand, those it leaves alone included."""
        return self._place if one.rows is None else self._place.of(one.rows)

    def _select(self, index: int) -> Selection:
        """Which tokens of all rows its scope selects, pads left out."""
        scope = self._program.scopes[index]
        if scope not in self._scopes:
            self._scopes[scope] = _tokens(scope, self._place)
        return self._scopes[scope]

    def _where(self, index: int, one: Intervention) -> tuple[Place, Selection]:
        if index not in self._selected:
            place, tokens = self._standing(one), self._select(index)
            if isinstance(tokens, Tensor):
                tokens = tokens if one.rows is None else tokens[list(one.rows)]
                tokens = tokens if bool(tokens.any()) else False
            place = place.only(tokens) if isinstance(tokens, Tensor) else place
            self._selected[index] = (place, tokens)
        return self._selected[index]


def _tokens(scope: Scope, place: Place) -> Selection:
    """Which tokens are touched: positions and pads taken together."""
    chosen = scope.select(place)
    if isinstance(chosen, bool) and (not chosen or place.real is None):
        return chosen
    mask = torch.ones_like(place.positions, dtype=torch.bool) if chosen is True else chosen
    if place.real is not None:
        mask = mask & place.real
    return mask if bool(mask.any()) else False


def _moved(changed: Tensor, value: Tensor) -> Tensor:
    """The sum of the squared changes; a masked score is -inf, and hidden whatever is written."""
    same = (changed == value) | (value == float("-inf"))
    difference = torch.where(same, 0, changed - value)
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32  # half overflows
    if not difference.is_floating_point():
        difference = difference.to(wide)
    return torch.linalg.vector_norm(difference, dtype=wide) ** 2


def _count(tokens: Selection, place: Place) -> Tensor | int:
    if isinstance(tokens, Tensor):
        return tokens.sum()
    return place.positions.numel()
