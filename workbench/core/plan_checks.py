"""What a plan may not ask of a model: refused before anything runs, whatever the strength."""

import itertools
from collections.abc import Mapping, Sequence

from workbench.core.axes import GROUPED, HEAD_INPUTS, READ_NORM
from workbench.core.errors import OptionError
from workbench.core.interventions import Intervention
from workbench.core.operators import Function
from workbench.core.plan import Plan
from workbench.core.protocols import Model
from workbench.core.sites import Site


def check_readers(plan: Plan, by_site: Mapping[Site, Sequence[int]]) -> None:
    """Refuses a plan whose meaning is a guess; a bare function may only look, and is let through.

    Raises:
        OptionError: If it changes both a head's input and the norm that reads it.
    """
    inputs: dict[tuple[str, int | None], list[tuple[Site, int]]] = {}
    norms: dict[tuple[str, int | None], list[tuple[Site, int]]] = {}
    for site, indices in by_site.items():
        kind = inputs if site.short in HEAD_INPUTS else norms if site.short in READ_NORM else None
        if kind is not None:
            edits = [i for i in indices if not isinstance(plan[i].operator, Function)]
            block = site.stack, site.layer
            kind.setdefault(block, []).extend((site, index) for index in edits)
    for block, edits in inputs.items():
        for (site, index), (norm, other) in itertools.product(edits, norms.get(block, ())):
            if _share_rows(plan[index], plan[other]):
                which = f"plan[{other}] changes {norm}, which reads it"
                raise OptionError(f"plan[{index}] at {site}", f"left out: {which}", plan[index])


def _share_rows(one: Intervention, other: Intervention) -> bool:
    return one.rows is None or other.rows is None or bool(set(one.rows) & set(other.rows))


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
