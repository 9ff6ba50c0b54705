"""Cells on named axes: one change for every layer, position, head, neuron, key, row or strength.

Notable: a grid says what varies, in words; `spread` turns it into cells for one model and prompt.
With the activations of another prompt as what is put in (patching), a causal model can not differ
before the prompts do: such places are known to have no effect, and are not run.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from torch import Tensor

from workbench.core.axes import GROUPED
from workbench.core.data import Batch
from workbench.core.errors import AlignmentError, OptionError
from workbench.core.interventions import Intervention
from workbench.core.operators import Operator
from workbench.core.operators import set as set_to
from workbench.core.options import expect, indices, iterated, number, texts
from workbench.core.protocols import Model
from workbench.core.result import Axis
from workbench.core.sides import Side, on_side, side_of
from workbench.core.sites import Selector, Site, Sites, select

Entries = Mapping[str, tuple[int, ...]]
Given = Mapping[Site, Tensor]


@final
@dataclass(frozen=True, init=False, eq=False)
class Grid:
    """One cell for every combination of entries of the axes `over`, in that order.

    `layer` (or `site`, where sites of several kinds are chosen) runs over the sites; `pos` over
    positions, those of the query for scores and patterns, and `key` over what it looks at; `head`,
    `neuron` and `row` over those of each site; `strength` over `strengths`. An axis that is left
    out is changed as a whole. `only` names the entries of an axis where not all are meant: of one
    in `over` those that get a cell, of another those that every cell changes.
    """

    AXES: ClassVar[tuple[str, ...]] = (
        *("site", "layer", "row", "pos", "key", "head", "neuron", "strength"),
    )

    sites: Selector
    over: tuple[str, ...]
    operator: Operator | None  # None: set to the source's activation
    strengths: tuple[float, ...]
    only: Entries = field(default_factory=dict[str, tuple[int, ...]])

    def __init__(
        self,
        sites: Selector,
        over: str | Sequence[str],
        operator: Operator | None = None,
        *,
        strengths: float | Sequence[float] = 1.0,
        only: Mapping[str, int | Sequence[int]] | None = None,
    ) -> None:
        """Checks what can be checked without a model.

        Raises:
            OptionError: If an axis is unknown or named twice, or an option does not fit the axes.
            EmptySelectionError: If an axis has no entries.
        """
        axes = texts("over", over)
        if not axes or not set(axes) <= set(self.AXES) or len(set(axes)) < len(axes):
            raise OptionError("over", f"some of {', '.join(self.AXES)}, each once", over)
        if {"site", "layer"} <= set(axes):
            raise OptionError("over", "with 'layer' or 'site', not both", over)
        if operator is not None:
            expect("operator", operator, Operator, "one of wb.ops")
        many = not isinstance(strengths, int | float)
        doses = tuple(iterated("strengths", strengths)) if many else (strengths,)
        if not doses or ("strength" not in axes and len(doses) != 1):
            raise OptionError("strengths", "one number, or several with 'strength' in over", doses)
        for name, value in {
            "sites": sites,
            "over": axes,
            "operator": operator,
            "strengths": tuple(number("strengths", dose) for dose in doses),
            "only": _only(only),
        }.items():
            object.__setattr__(self, name, value)  # the only way into a frozen dataclass

    def chosen(self, model: Model) -> Sites:
        """The sites it changes.

        Raises:
            UnknownNameError: If the model lacks one.
            OptionError: If an axis does not fit one of them.
        """
        found = select(self.sites, model.sites)
        if len({site.name for site in found}) > 1 and "layer" in self.over:
            allowed = "with 'site' for 'layer': the sites are of several kinds"
            raise OptionError("over", allowed, self.over)
        if len(found) > 1 and not {"site", "layer"} & set(self.over):
            raise OptionError("over", "with 'layer' or 'site': there are several sites", self.over)
        for name in (*self.over, *self.only):
            for site in found:
                if name in _ON_SITES and not _has(site, name):
                    axes = " ".join(site.axes)
                    raise OptionError("over", f"without {name!r}: {site} has {axes}", self.over)
        return found


@final
@dataclass(frozen=True, eq=False)
class Spread:
    """A grid made ready for one model and prompt."""

    axes: tuple[Axis, ...]
    cells: tuple[Intervention, ...]  # in the order of the axes, the last one fastest
    parted: int | None  # the first position at which source and base differ, where that is known


def spread(grid: Grid, model: Model, base: Batch, given: Given, parted: int | None) -> Spread:
    """The cells of a grid; `given` are the source's activations, where it takes them.

    Raises:
        OptionError: If an entry is not there, or a cell has nothing to put in.
        UnknownNameError: If the model lacks a site.
    """
    sites = grid.chosen(model)
    if grid.operator is None and not given:
        raise OptionError("source", "given: the grid has no operator, and sets to the source's", "")
    entries: dict[str, tuple[Any, ...]] = {
        name: _entries(grid, name, sites, model, base) for name in grid.over
    }
    axes = tuple(
        _axis(name, part, model, _read(name, sites, model, base)) for name, part in entries.items()
    )
    operators = {site: grid.operator or set_to(given[site]) for site in sites}
    known = parted if grid.operator is None else None
    cells = tuple(
        _cell(grid, dict(zip(entries, place, strict=True)), sites, operators, model, known)
        for place in itertools.product(*entries.values())
    )
    return Spread(axes, cells, known)


def parting(base: Batch, source: Batch, model: Model) -> int:
    """The first position at which a source differs from the base; 0 where all may differ.

    Raises:
        AlignmentError: If they do not have the same rows and lengths.
    """
    if base.tokens.shape != source.tokens.shape or base.lengths.tolist() != source.lengths.tolist():
        raise AlignmentError(
            f"source has {len(source.lengths)} prompts of {source.lengths.tolist()} tokens, the "
            f"base {len(base.lengths)} of {base.lengths.tolist()}; they must match one by one."
        )
    if base.source is not None and source.source is not None:
        parting(base.source, source.source, model)
        return 0  # a memory may differ everywhere
    from_start = all(bool((one.last + 1 == one.lengths).all()) for one in (base, source))
    masked = base.seen is not None or source.seen is not None  # perhaps each in its own way
    if not model.causal or not from_start or masked:
        return 0
    apart = (base.tokens != source.tokens).any(0).nonzero()
    return int(apart[0]) if len(apart) else base.tokens.shape[1]


_ON_SITES = ("pos", "key", "head", "neuron")


def _has(site: Site, name: str) -> bool:
    if name == "neuron":
        return site.axes[-1].startswith("d_")
    if name == "pos":
        return bool({"pos", "query"} & set(site.axes))
    return name in site.axes


def _only(only: Mapping[str, int | Sequence[int]] | None) -> Entries:
    allowed = ("row", *_ON_SITES)
    found = {} if only is None else dict(expect("only", only, Mapping, "entries by axis"))
    if not set(found) <= set(allowed):
        raise OptionError("only", f"entries of some of {', '.join(allowed)}", only)
    read = {name: indices(f"only[{name!r}]", values) for name, values in found.items()}
    for name, values in read.items():
        if min(values) < 0 or len(set(values)) < len(values):
            raise OptionError(f"only[{name!r}]", "indices from 0 up, each once", list(values))
    return read


def _entries(
    grid: Grid, name: str, sites: Sites, model: Model, base: Batch
) -> tuple[Site | int | float, ...]:
    """What an axis runs over.

    Raises:
        OptionError: If `only` names what is not there, or sites differ in size.
    """
    if name in ("site", "layer"):
        return sites
    if name == "strength":
        return grid.strengths
    sizes = {_size(name, site, model, base) for site in sites}
    if len(sizes) > 1:
        raise OptionError("sites", f"sites with equally many {name}s", list(map(str, sites)))
    size = sizes.pop()
    chosen = grid.only.get(name, tuple(range(size)))
    if max(chosen) >= size:
        raise OptionError(f"only[{name!r}]", f"below {size}", list(chosen))
    return chosen


def _read(name: str, sites: Sites, model: Model, base: Batch) -> Batch:
    """The tokens that a position or key of these sites is one of."""
    sides = {side_of(site, model) for site in sites}
    keys = name == "key" and Side.ACROSS in sides
    return on_side(base, Side.SOURCE if keys or Side.SOURCE in sides else Side.TARGET)


def _size(name: str, site: Site, model: Model, base: Batch) -> int:
    side = side_of(site, model)
    across = name == "key" and side is Side.ACROSS
    rows, width = on_side(base, Side.SOURCE if across else side).tokens.shape
    if name == "head":
        grouped = site.short in GROUPED
        return model.sizes.n_key_value_heads if grouped else model.sizes.n_heads
    if name == "neuron":
        widths = {"d_model": model.sizes.d_model, "d_head": model.sizes.d_head}
        known = {**widths, "d_mlp": model.sizes.d_mlp, "d_vocab": model.sizes.d_vocab}
        if site.axes[-1] not in known:
            raise OptionError("over", f"without 'neuron': {site} has a width of its own", name)
        return known[site.axes[-1]]
    return rows if name == "row" else width


def _axis(name: str, entries: tuple[Any, ...], model: Model, base: Batch) -> Axis:
    if name == "strength":
        return Axis(name, tuple(f"{dose:g}" for dose in entries))
    if name == "layer":
        return Axis(
            name, tuple(str(site if site.layer is None else site.layer) for site in entries)
        )
    if name == "head":
        return Axis(name, tuple(f"H{head}" for head in entries))
    vocabulary = model.tokenizer
    if name in ("pos", "key") and vocabulary is not None and len(base.tokens) == 1:
        row = base.tokens[0].tolist()
        return Axis(name, tuple(vocabulary.token_text(row[pos]) for pos in entries))
    return Axis(name, tuple(map(str, entries)))


def _cell(
    grid: Grid,
    place: Mapping[str, Any],
    sites: Sites,
    operators: Mapping[Site, Operator],
    model: Model,
    parted: int | None,
) -> Intervention:
    """The intervention of one place; a row too short for its position keeps an effect of 0."""
    site: Site = place.get("site", place.get("layer", sites[0]))
    at = {name: _at(grid, place, name) for name in ("row", *_ON_SITES)}
    positions = at["pos"]
    hidden = (
        model.causal
        and side_of(site, model) is Side.TARGET
        and None not in (at["key"], positions)
        and _later(at["key"], positions)
    )
    same = parted is not None and positions is not None and max(positions) < parted
    idle = hidden or same
    return Intervention(
        site,
        operators[site],
        positions=positions if positions is not None or parted is None else slice(parted, None),
        heads=at["head"],
        rows=at["row"],
        neurons=at["neuron"],
        keys=at["key"],
        strength=0.0 if idle else place.get("strength", grid.strengths[0]),
        optional=True,
    )


def _at(grid: Grid, place: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    return (place[name],) if name in place else grid.only.get(name)


def _later(keys: tuple[int, ...] | None, queries: tuple[int, ...] | None) -> bool:
    """Whether every key comes after every query, where a causal model never looks."""
    return min(keys or (0,)) > max(queries or (0,))
