"""A plan made ready for one model: which interventions act at which site, and what they did.

Notable: a `Program` is frozen and may be shared; the tap it gives for a pass and the ledger it
writes to belong to one run. A row, position, head or neuron that is not selected keeps its bytes.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import GROUPED, HEAD_INPUTS, READ_NORM
from workbench.core.banks import Bank, Constant, Part, Selected, constant_of, parts_of
from workbench.core.data import Batch
from workbench.core.errors import EmptySelectionError, NeverActedError, OptionError
from workbench.core.gates import Gate
from workbench.core.gating import GateTap, readings
from workbench.core.interventions import Intervention
from workbench.core.ledger import Ledger, Receipt
from workbench.core.masks import key_mask, mask_of, scheduled
from workbench.core.operands import check_like
from workbench.core.operators import Function
from workbench.core.phrases import bound
from workbench.core.plan import Plan
from workbench.core.protocols import Model
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

    def first_block(self, model: Model) -> int:
        """The first block the plan changes: -1 for the embedding, `n_layers` after the blocks."""
        first = next((site for site in model.sites if site in self.by_site), None)
        return -1 if first is None else block_of(first, model)

    def last_block(self, model: Model) -> int:
        """The last block the plan changes, counted in the same way."""
        last = next((site for site in reversed(model.sites) if site in self.by_site), None)
        return -1 if last is None else block_of(last, model)

    def tap(self, place: Place, ledger: Ledger) -> Tap:
        """The tap that carries the plan out in one pass."""
        if not self.by_site:
            return UNTAPPED
        acting = PlanTap(self, place, ledger)
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
        prompts = batch.prompt.tolist()
        reached = batch.ends.tolist() if lengths is None else lengths
        for i, (one, receipt) in enumerate(zip(self.plan, receipts, strict=True)):
            if one.optional:
                continue
            missed = (
                *one.positions.missed(prompts, reached),
                *(key for key in one.keys or () if key >= max(reached)),
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
    _check_readers(plan, by_site)
    parts = {site: parts_of(plan, at, site, model, batch) for site, at in by_site.items()}
    return Program(
        plan,
        {site: tuple(indices) for site, indices in by_site.items()},
        parts,
        constant_of(parts, model.dtype),
        tuple(bound(one.positions, model.tokenizer) for one in plan),
        readings(plan, by_site, model),
    )


def _check_readers(plan: Plan, by_site: Mapping[Site, Sequence[int]]) -> None:
    """Refuses a plan whose meaning is a guess; a bare function may only look, and is let through.

    Raises:
        OptionError: If it changes both a head's input and the norm that reads it.
    """
    inputs: dict[int | None, list[tuple[Site, int]]] = {}
    norms: dict[int | None, list[tuple[Site, int]]] = {}
    for site, indices in by_site.items():
        kind = inputs if site.short in HEAD_INPUTS else norms if site.short in READ_NORM else None
        if kind is not None:
            edits = [i for i in indices if not isinstance(plan[i].operator, Function)]
            kind.setdefault(site.layer, []).extend((site, index) for index in edits)
    for layer, edits in inputs.items():
        for (site, index), (norm, other) in itertools.product(edits, norms.get(layer, ())):
            if _share_rows(plan[index], plan[other]):
                which = f"plan[{other}] changes {norm}, which reads it"
                raise OptionError(f"plan[{index}] at {site}", f"left out: {which}", plan[index])


def _share_rows(one: Intervention, other: Intervention) -> bool:
    return one.rows is None or other.rows is None or bool(set(one.rows) & set(other.rows))


def block_of(site: Site, model: Model) -> int:
    """The block a site is in: -1 before all of them, `n_layers` after them."""
    if site.layer is not None:
        return site.layer
    block = next(site for site in model.sites if site.layer is not None)
    return -1 if model.sites.index(site) < model.sites.index(block) else model.sizes.n_layers


def check_heads(one: Intervention, site: Site, model: Model) -> None:
    """Refuses heads a site does not have, before anything runs, whatever the strength.

    Raises:
        OptionError: If the site has no heads, or not so many.
    """
    if one.neurons is not None:
        check_neurons(one.neurons, site, model)
    if one.keys is not None and site.axes[-1] != "key":
        raise OptionError(
            f"keys at {site}", f"left out: its axes are {' '.join(site.axes)}", one.keys
        )
    if one.heads is None:
        return
    if "head" not in site.axes:
        axes = " ".join(site.axes)
        raise OptionError(f"heads at {site}", f"left out: its axes are {axes}", one.heads)
    n_heads = model.sizes.n_key_value_heads if site.short in GROUPED else model.sizes.n_heads
    if max(one.heads) >= n_heads:
        raise OptionError(f"heads at {site}", f"below {n_heads}", one.heads)


def check_neurons(neurons: tuple[int, ...], site: Site, model: Model) -> None:
    """Refuses neurons a site does not have.

    Raises:
        OptionError: If its last axis is no width, or not so wide.
    """
    width = vars(model.sizes).get(site.axes[-1])
    if width is None:
        axes = " ".join(site.axes)
        raise OptionError(f"neurons at {site}", f"left out: its axes are {axes}", neurons)
    if max(neurons) >= width:
        raise OptionError(f"neurons at {site}", f"below {width}", neurons)


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
