"""Path patching: what one part of a model does to the metric by way of another's input alone.

A sender takes the donor prompt's value while everything else is held at the base prompt's, so that
its difference reaches a receiver's input by the residual stream only. Then the base prompt runs
with that input in the receiver's place, and everything after it is computed anew. Effect =
metric(that run) - metric(base).

Notable: a receiver's input is *set*. Receivers patched together each get what came from the sender
directly, none what the others among them then write; so the stream at the end, "logits", overrides
all others beside it. Effects by single receivers do not sum to the sender's whole effect, but to
first order they do (MLPs frozen, all receivers counted: each path leaves the sender by one edge).

With all heads frozen nothing moves from one position to another on the way to a receiver: what a
sender changes at a position arrives at that position only. So one pass gives the inputs of every
receiver for every position of the sender.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.attribution.attribution import Kind
from workbench.attribution.method import AttributionMethod, Scores
from workbench.attribution.parts import (
    LOGITS,
    Group,
    Part,
    Place,
    axis,
    before,
    end_of,
    grouped,
    places,
    positions_axis,
    read_at,
    receivers,
    senders,
)
from workbench.core.axes import HEAD_INPUTS
from workbench.core.data import Batch, TokenContrast
from workbench.core.errors import OptionError
from workbench.core.interventions import Intervention
from workbench.core.ledger import Ledger
from workbench.core.metrics import TokenMetric
from workbench.core.modes import forward_only
from workbench.core.operators import set as set_to
from workbench.core.operators import zero
from workbench.core.plan import Plan
from workbench.core.program import block_of, compile_plan
from workbench.core.protocols import Model
from workbench.core.result import Check
from workbench.core.run import run
from workbench.core.sites import Site, Sites, select
from workbench.core.sweep import repeated, sweep
from workbench.core.tap import Recorder, Tap, chain
from workbench.core.trace import Trace

_HELD = 2**27  # numbers of receivers' inputs that wait for one sweep


@final
@dataclass(frozen=True)
class PathPatching(AttributionMethod):
    """Exact effects along single paths, from each sender to each receiver.

    Senders are the `sites` of the call: each head of `attn.hook_z` (only some, if `heads` are
    named), and whole `hook_mlp_out`, `hook_attn_out`, `hook_resid_pre` and embeddings. `receivers`
    are names and globs of `hook_q_input`, `hook_k_input`, `hook_v_input` (head by head; keys and
    values by key-value head; one alone is "blocks.9.hook_q_input H6"), `hook_mlp_in`, and
    "logits", the stream at the end. On the way all heads are frozen, and MLPs either too (one
    edge) or "recomputed", as in the IOI paper.

    Axes: `sender`, `receiver`, and, if asked for, `pos`: where the sender takes the donor's value
    (only at some positions, if `positions` are named; negative ones from the end of each prompt).
    An axis left out is patched as a whole.

    Costs one pass over the blocks per site of senders, of as many rows as it has heads, and one
    batched cell per pair (and position) in which the receiver comes after the sender.
    """

    receivers: tuple[str, ...] = (LOGITS,)
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    mlps: Literal["frozen", "recomputed"] = "frozen"
    direction: Literal["noising", "denoising"] = "noising"
    max_tokens: int = 1024
    source: ClassVar[str] = (
        "Wang et al. 2022, arXiv:2211.00593; Goldowsky-Dill et al. 2023, 2304.05969"
    )
    kind: ClassVar[Kind] = "effect"
    offered: ClassVar[tuple[str, ...]] = ("sender", "pos", "receiver")
    usual: ClassVar[tuple[str, ...]] = ("sender", "receiver")

    @override
    def sites(self, model: Model) -> Sites:
        return select(lambda site: site.short in ("attn.hook_z", "hook_mlp_out"), model.sites)

    @override
    def scores(
        self,
        model: Model,
        contrast: TokenContrast,
        metric: TokenMetric,
        sites: Sites,
        axes: tuple[str, ...],
        plan: Plan,
    ) -> Scores:
        base, donor = self._ends(contrast)
        sent = grouped(senders(sites, model, self.heads), apart="sender" in axes)
        received = grouped(receivers(self.receivers, model), apart="receiver" in axes)
        where = places(self.positions, base, apart="pos" in axes)
        _check_plan(plan, model, local=where != [None])
        held = _held(model, mlps=self.mlps == "frozen")
        given = run(
            model, donor, plan=plan, record=sites, positions="answer", vocabulary=metric.vocabulary
        )
        parted = _parted(base, donor) if model.causal and plan.replayable else 0
        values = _values(model, base, plan, held)
        paths = _Paths(
            model, base, plan, held, given, values, received, where, parted, self.max_tokens
        )
        swept = [
            sweep(model, base, cells, metric, plan=plan, max_tokens=self.max_tokens)
            for cells in paths.cells(sent)
        ]
        named = {"sender": axis("sender", sent), "receiver": axis("receiver", received)}
        named["pos"] = positions_axis(where, base, model)
        resolved = tuple(named[name] for name in axes)
        effects = torch.cat([one.effects for one in swept]).T
        base_value, donor_value = swept[0].base, metric(given)
        total = donor_value - base_value
        checks = (
            Check("total effect", float(total.mean()), metric.unit, "metric(donor) - metric(base)"),
            Check("paths", float(effects.shape[1]), "paths", "each one exact"),
            Check("parted", float(parted), "position", "the prompts agree before it: effect 0"),
        )
        shaped = effects.reshape(-1, *(len(one.labels) for one in resolved))
        return Scores(shaped, resolved, base_value, donor_value, checks)

    def _ends(self, contrast: TokenContrast) -> tuple[Batch, Batch]:
        if self.mlps not in ("frozen", "recomputed"):
            raise OptionError("mlps", "'frozen' or 'recomputed'", self.mlps)
        if self.direction == "noising":
            return contrast.clean, contrast.corrupt
        if self.direction == "denoising":
            return contrast.corrupt, contrast.clean
        raise OptionError("direction", "'noising' or 'denoising'", self.direction)


@final
class Frozen(Tap):
    """Holds the `held` sites at the base's values but for the senders, which take the donor's.

    Rows are groups of senders, each of them the whole base batch.
    """

    def __init__(
        self, groups: Sequence[Group], held: Sites, base: Trace, donor: Trace, rows: int
    ) -> None:
        self._groups, self._held, self._rows = groups, frozenset(held), rows
        self._base, self._donor = base, donor

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        parts = [(i, p) for i, group in enumerate(self._groups) for p in group if p.site == site]
        if site in self._held:
            value = self._base[site].repeat(len(self._groups), *[1] * (value.ndim - 1))
        elif parts:
            value = value.clone()
        for i, part in parts:
            self._put(i, part, value)
        return value

    @override
    def wants(self, site: Site) -> bool:
        return site in self._held

    def _put(self, i: int, part: Part, value: Tensor) -> None:
        """Writes into a tensor of our own."""
        own, new = slice(i * self._rows, (i + 1) * self._rows), self._donor
        if part.head is None:
            value[own] = new[part.site]
        else:
            value[own, :, part.head] = new[part.site][:, :, part.head]


@final
@dataclass(frozen=True, eq=False)
class _Paths:
    """What all paths start from."""

    model: Model
    batch: Batch
    plan: Plan
    held: Sites
    donor: Trace
    base: Trace
    receivers: Sequence[Group]
    places: Sequence[Place]
    parted: int
    max_tokens: int  # of a pass, unless one sender's are more

    def cells(self, senders: Sequence[Group]) -> Iterator[list[list[Intervention]]]:
        """A cell per pair and place, receivers fastest, in batches that fit into memory."""
        waiting: list[list[Intervention]] = []
        numbers = 0
        for together in self._passes(senders):
            reached = self._reached(together)
            numbers += sum(value.numel() for value in reached.values())
            for i, group in enumerate(together):
                waiting += self._row(i, group, reached)
            if numbers > _HELD:
                yield waiting
                waiting, numbers = [], 0
        if waiting:
            yield waiting

    def _passes(self, senders: Sequence[Group]) -> Iterator[list[Group]]:
        """Senders that begin at one site, as many as a pass has tokens for."""
        at_once = max(1, self.max_tokens // self.batch.tokens.numel())
        for _, some in groupby(senders, lambda group: group[0].site):
            together = list(some)
            for first in range(0, len(together), at_once):
                yield together[first : first + at_once]

    def _reached(self, senders: Sequence[Group]) -> dict[Site, Tensor]:
        """What stands at the receivers' sites when only the senders' change reaches them."""
        model, rows = self.model, len(self.batch.tokens)
        reads = {str(read_at(part.site)) for group in self.receivers for part in group}
        read = select(sorted(reads), model.sites)
        batch = self.batch.repeat(len(senders))
        held = repeated(self.plan, range(len(senders)), rows)
        plan = compile_plan(held, model, len(batch.tokens)).tap(batch, Ledger(held))
        recorder = Recorder(read)
        frozen = Frozen(senders, self.held, self.base, self.donor, rows)
        tap = chain(plan, frozen, recorder)
        first = min(block_of(part.site, model) for group in senders for part in group)
        with forward_only():
            if first < 1:
                resid = model.embed(batch, tap)
            else:
                before = self.base[end_of(first - 1, model)]
                resid = before.repeat(len(senders), 1, 1)
            last = max(block_of(site, model) for site in read) + 1
            if last > max(first, 0):
                model.layers(resid, batch, tap, first=max(first, 0), last=last)
        return dict(recorder.recorded())

    def _row(
        self, i: int, sender: Group, reached: dict[Site, Tensor]
    ) -> Iterator[list[Intervention]]:
        """The cells of one sender: each receiver's input set to what reached it, place by place."""
        rows, order = len(self.batch.tokens), self.model.sites
        start = min(order.index(part.site) for part in sender)
        puts = {site: set_to(value[i * rows : (i + 1) * rows]) for site, value in reached.items()}
        split = {site: set_to(put.operand[:, :, None]) for site, put in puts.items()}
        for place, receiver in product(self.places, self.receivers):
            later = [part for part in receiver if order.index(part.site) > start]
            same = before(place, self.parted, self.batch)
            yield [
                Intervention(
                    part.site,
                    (puts if part.head is None else split)[read_at(part.site)],
                    positions=slice(self.parted, None) if place is None else place,
                    heads=None if part.head is None else [part.head],
                    optional=True,
                )
                for part in ([] if same else later)
            ] or [Intervention(receiver[0].site, zero(), strength=0.0, optional=True)]


def _held(model: Model, *, mlps: bool) -> Sites:
    """What is frozen: every head, and every MLP."""
    kinds = ("attn.hook_z", "hook_mlp_out") if mlps else ("attn.hook_z",)
    return select(lambda site: site.short in kinds, model.sites)


def _values(model: Model, base: Batch, plan: Plan, held: Sites) -> Trace:
    """The base run's values: of what is held, and of the streams that passes start from."""
    kept = {*held, *(end_of(layer, model) for layer in range(model.sizes.n_layers))}
    return run(model, base, plan=plan, record=lambda site: site in kept, logits=False)


def _check_plan(plan: Plan, model: Model, *, local: bool) -> None:
    """Refuses a plan under which a path would not be what it is said to be.

    One that changes what receivers read: their input would be set over it. And, where positions
    are told apart, a bare function: it may carry a change from one of them to another.

    Raises:
        OptionError: If it does.
    """
    for one in plan:
        for site in select(one.sites, model.sites):
            if site.short in HEAD_INPUTS:
                raise OptionError("plan", "without changes at the inputs of heads", str(one))
    if local and not plan.replayable:
        raise OptionError("plan", "without bare functions where positions are told apart", plan)


def _parted(base: Batch, donor: Batch) -> int:
    """The first position at which an example's prompts differ; beyond the last where none does."""
    apart = (base.tokens != donor.tokens).any(0).nonzero()
    return int(apart[0]) if len(apart) else base.tokens.shape[1]


METHOD = PathPatching()
