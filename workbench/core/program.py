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
from workbench.core.errors import EmptySelectionError, NeverActedError, OptionError
from workbench.core.interventions import Intervention
from workbench.core.operators import Function, check_like
from workbench.core.place import Mask, Place, Selection
from workbench.core.plan import Plan
from workbench.core.protocols import Model
from workbench.core.sites import Site, select
from workbench.core.tap import UNTAPPED, Tap


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
        self._squares: list[list[Tensor]] = [[] for _ in plan]

    def note(self, index: int, tokens: Tensor | int, squares: Tensor) -> None:
        """Adds one act; keeps tensors, so that a decode step never waits for a number."""
        self._acted[index] += 1
        self._tokens[index].append(tokens)
        self._squares[index].append(squares)

    def receipts(self) -> tuple[Receipt, ...]:
        """One receipt per intervention, in the order of the plan."""
        return tuple(
            Receipt(
                str(intervention),
                self._acted[i],
                sum(int(count) for count in self._tokens[i]),
                float(sum(float(square) for square in self._squares[i]) ** 0.5),
            )
            for i, intervention in enumerate(self._plan)
        )


@final
@dataclass(frozen=True, eq=False)
class Program:
    """A plan whose sites are resolved on one model."""

    plan: Plan
    by_site: Mapping[Site, tuple[int, ...]]

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
        return PlanTap(self, place, ledger) if self.by_site else UNTAPPED

    def finish(
        self,
        ledger: Ledger,
        prompts: Sequence[int],
        ended: str,
        *,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Receipt, ...]:
        """The receipts, once every intervention has acted as it must.

        `lengths` are those of the finished texts, where they are longer than the prompts.

        Raises:
            NeverActedError: If one that is not optional never acted.
            EmptySelectionError: If one names positions that no row has.
        """
        receipts = ledger.receipts()
        for i, (one, receipt) in enumerate(zip(self.plan, receipts, strict=True)):
            if one.optional:
                continue
            reached = prompts if lengths is None else lengths
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
                raise NeverActedError(
                    f"plan[{i}], {one}, never acted: {ended}. Mark it optional if that is meant."
                )
        return receipts


def compile_plan(plan: Plan, model: Model, batch: int) -> Program:
    """Resolves the sites and checks rows, before anything runs.

    An intervention of strength 0 is left out here, so the run is bit-exact with one without it.

    Raises:
        UnknownNameError: If a site is not one of the model's.
        OptionError: If a row is outside the batch, or the plan changes both what the heads of a
            layer read and the norm that each of them reads it through.
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
    return Program(plan, {site: tuple(indices) for site, indices in by_site.items()})


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
        self._selected: dict[int, tuple[Place, Selection]] = {}  # made once per pass

    @override
    def wants(self, site: Site) -> bool:
        return site in self._program.by_site

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        for index in self._program.by_site.get(site, ()):
            value = self._act(index, site, value)
        return value

    def _act(self, index: int, site: Site, value: Tensor) -> Tensor:
        one = self._program.plan[index]
        place, tokens = self._where(index, one)
        if tokens is False:
            return value
        part = value if one.rows is None else value[list(one.rows)]
        new = one.operator(part, site, place, one.size)
        check_like(new, part, site)
        mask = _mask(one, tokens, site, part)
        if one.keys is not None:
            keys = _keys(one.keys, self._standing(one), site, part)
            mask = keys if mask is None else mask & keys
        changed = new if mask is None else torch.where(mask, new, part)
        self._ledger.note(index, _count(tokens, place), _moved(changed.detach(), part.detach()))
        if one.rows is None:
            return changed
        rows = torch.tensor(one.rows, device=value.device)
        return value.index_copy(0, rows, changed)

    def _standing(self, one: Intervention) -> Place:
        """Where all tokens of its rows stand, those it leaves alone included."""
        return self._place if one.rows is None else self._place.of(one.rows)

    def _where(self, index: int, one: Intervention) -> tuple[Place, Selection]:
        if index not in self._selected:
            place = self._standing(one)
            tokens = _tokens(one, place)
            place = place.only(tokens) if isinstance(tokens, Tensor) else place
            self._selected[index] = (place, tokens)
        return self._selected[index]


def _tokens(one: Intervention, place: Place) -> Selection:
    """Which tokens of these rows are touched: positions and pads taken together."""
    chosen = one.positions.select(place)
    if isinstance(chosen, bool) and (not chosen or place.real is None):
        return chosen
    mask = torch.ones_like(place.positions, dtype=torch.bool) if chosen is True else chosen
    if place.real is not None:
        mask = mask & place.real
    return mask if bool(mask.any()) else False


def _mask(one: Intervention, tokens: Selection, site: Site, value: Tensor) -> Tensor | None:
    """The selection in the shape of the activation, or None for all of it."""
    parts: list[Tensor] = []
    if isinstance(tokens, Tensor):
        parts.append(_as_axes(tokens, site, value.ndim))
    if one.heads is not None:
        parts.append(_along("head", one.heads, site, value, "heads"))
    if one.neurons is not None:
        width = next((axis for axis in site.axes if axis.startswith("d_")), "neuron")
        parts.append(_along(width, one.neurons, site, value, "neurons"))
    if not parts:
        return None
    mask = parts[0]
    for part in parts[1:]:
        mask = mask & part
    return mask


def _as_axes(tokens: Mask, site: Site, ndim: int) -> Tensor:
    axis = site.axes.index("pos") if "pos" in site.axes else site.axes.index("query")
    shape = [1] * ndim
    shape[0], shape[axis] = tokens.shape
    return tokens.reshape(shape)


def _along(axis: str, indices: tuple[int, ...], site: Site, value: Tensor, option: str) -> Tensor:
    if axis not in site.axes:
        axes = " ".join(site.axes)
        raise OptionError(f"{option} at {site}", f"left out: its axes are {axes}", indices)
    where = site.axes.index(axis)
    if max(indices) >= value.shape[where]:
        raise OptionError(f"{option} at {site}", f"below {value.shape[where]}", indices)
    mask = torch.zeros(value.shape[where], dtype=torch.bool, device=value.device)
    mask[list(indices)] = True
    return mask.reshape([-1 if i == where else 1 for i in range(value.ndim)])


def _keys(indices: tuple[int, ...], place: Place, site: Site, value: Tensor) -> Tensor:
    """The columns of these keys, which stand one after another from each row's first on.

    Raises:
        OptionError: If the site has no keys.
    """
    if site.axes[-1] != "key":
        axes = " ".join(site.axes)
        raise OptionError(f"keys at {site}", f"left out: its axes are {axes}", indices)
    n_keys, width = value.shape[-1], place.positions.shape[1]
    columns = torch.arange(width, device=value.device)
    real = torch.ones_like(place.positions, dtype=torch.bool) if place.real is None else place.real
    at = torch.where(real, columns, -1).argmax(1, keepdim=True)  # any token of the row will do
    first = n_keys - width + at - place.positions.gather(1, at)
    keys = torch.arange(n_keys, device=value.device) - first
    return torch.isin(keys, torch.tensor(indices, device=value.device))[:, None, None]


def _moved(changed: Tensor, value: Tensor) -> Tensor:
    """The sum of the squared changes; a masked score is -inf, and hidden whatever is written."""
    same = (changed == value) | (value == float("-inf"))
    difference = torch.where(same, 0, changed - value)
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32  # half overflows
    return torch.linalg.vector_norm(difference, dtype=wide) ** 2


def _count(tokens: Selection, place: Place) -> Tensor | int:
    if isinstance(tokens, Tensor):
        return tokens.sum()
    return place.positions.numel()
