"""What a classic cache keeps of a run: which names, and which part of each activation.

Notable: a run that no hook changed can be made again; so what it did not keep is computed when it
is read.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.compat.transformer_lens.calls import Call, Read, Returned, read, run_call
from workbench.compat.transformer_lens.hooks import Hooks
from workbench.compat.transformer_lens.slices import Slice, SliceInput
from workbench.compat.transformer_lens.taps import HookTap, Nodes, gradients_at
from workbench.compat.transformer_lens.tokens import Texts
from workbench.core.errors import NotRecordedError, OptionError, ShapeError, UnknownNameError
from workbench.core.protocols import Model
from workbench.core.sites import Site, Sites, is_glob, select
from workbench.core.tap import chain

NamesFilter: TypeAlias = str | Collection[str] | Callable[[str], bool] | None


@final
@dataclass(frozen=True, eq=False)
class Kept:
    """How entries of a cache are cut and where they are put."""

    device: torch.device | str | None = None
    remove_batch_dim: bool = False
    pos_slice: Slice | SliceInput = None

    def entry(self, site: Site, value: Float[Tensor, "..."] | Int[Tensor, "..."]) -> Tensor:
        """The part that is kept; the axis of positions is the site's own.

        Raises:
            ShapeError: If several rows would lose all but one.
        """
        value = value.detach()
        if self.pos_slice is not None:
            axis = site.axes.index("query" if "query" in site.axes else "pos")
            value = Slice.unwrap(self.pos_slice).apply(value, axis)
        if self.remove_batch_dim:
            if value.shape[0] != 1:
                raise ShapeError("remove_batch_dim", "a single row", f"{value.shape[0]}")
            value = value[0]
        return value if self.device is None else value.to(self.device)


@final
@dataclass(frozen=True)
class Wanted:
    """The sites to record; those of `exact` were asked for by name and must be reached."""

    sites: Sites
    exact: frozenset[str]


def wanted(names: NamesFilter, hooks: Hooks, known: Sites, enabled: Collection[str]) -> Wanted:
    """The sites that a filter names; None is all that the classic flags enable.

    Raises:
        UnknownNameError: If a name or glob fits no site; names the nearest.
        EmptySelectionError: If nothing is chosen.
        OptionError: If it is no filter.
    """
    if names is None:
        return Wanted(tuple(site for site in known if str(site) in enabled), frozenset())
    if callable(names):
        chosen = hooks.chosen(names, "names_filter")
        return Wanted(tuple(site for site in known if str(site) in chosen), frozenset())
    parts = [names] if isinstance(names, str) else list(names)
    if not all(isinstance(part, str) for part in parts):
        raise OptionError("names_filter", "names, globs, a predicate over names, or None", names)
    sites = select(parts, known)
    return Wanted(sites, frozenset(part for part in parts if not is_glob(part)))


def check_reached(chosen: Wanted, seen: Mapping[Site, Tensor], ended: str) -> None:
    """Refuses a run that stopped before a site it was asked for.

    Raises:
        NotRecordedError: If there is one; says where the run stopped.
    """
    reached = {str(site) for site in seen}
    missing = sorted(chosen.exact - reached)
    if missing:
        raise NotRecordedError(f"The run never passed {', '.join(missing)}: {ended}.")


@final
@dataclass(frozen=True, eq=False)
class Recording:
    """One call whose activations are kept."""

    call: Call
    reading: Read
    model: Model
    kept: Kept

    def run(
        self, hooked: HookTap, chosen: Wanted, *, gradients: bool
    ) -> tuple[Returned, dict[str, Tensor]]:
        """What the call returns, and its entries by name; `name_grad` too with `gradients`.

        Raises:
            NotRecordedError: If it stops before a site asked for by name.
        """
        nodes = Nodes(chosen.sites, gradients=gradients)
        with torch.set_grad_enabled(gradients or torch.is_grad_enabled()):
            output = run_call(self.call, self.reading, self.model, chain(hooked, nodes))
        check_reached(chosen, nodes.seen, self._ran)
        seen = {site: nodes.seen[site] for site in chosen.sites if site in nodes.seen}
        entries = self._entries(seen, "")
        if gradients:
            entries |= self._entries(gradients_at(output, seen), "_grad")
        return output, entries

    def more(self, texts: Texts | None, hooked: HookTap) -> Callable[[str], Tensor]:
        """What gives an activation that was not kept, by running the call again.

        A call that had hooks, or that wrote to a cache, cannot be run again.
        """
        pure = not hooked.any and self.call.past_kv_cache is None

        def found(name: str) -> Tensor:
            known = {str(site): site for site in self.model.sites}
            hint = f"The run it holds: {self._ran}."
            if name not in known:
                raise UnknownNameError("activation", name, known, hint)
            nodes = Nodes((known[name],), gradients=False)
            if pure:
                run_call(self.call, read(self.call, self.model, texts), self.model, nodes)
            if known[name] not in nodes.seen:
                again = "" if pure else " It had hooks, so it cannot be run again for it."
                raise UnknownNameError("activation in this cache", name, (), hint + again)
            return self.kept.entry(known[name], nodes.seen[known[name]])

        return found

    @property
    def _ran(self) -> str:
        return self.call.ran(self.model.sizes.n_layers)

    def _entries(self, values: Mapping[Site, Tensor], ending: str) -> dict[str, Tensor]:
        return {f"{site}{ending}": self.kept.entry(site, v) for site, v in values.items()}
