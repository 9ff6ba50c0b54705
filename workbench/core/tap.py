"""The tap: the one idea everything else is made of.

A tap is a function `(site, activation) -> activation`. The model calls its tap at every site and
goes on with what it returns. Recording, ablating, patching, steering and differentiating are taps,
and the tap is an argument of the forward. `wants` lets a model keep its fused kernels: a costly
site (scores, pattern, a norm's inside, a head's result) is made only when somebody asks for it.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, final, runtime_checkable

from torch import Tensor
from typing_extensions import override

from workbench.core.sites import Site, Sites


@runtime_checkable
class Tap(Protocol):
    """What a model calls at every site; it must return a tensor like the one it was given."""

    def __call__(self, site: Site, value: Tensor) -> Tensor:
        """The activation the model goes on with."""
        ...

    def wants(self, site: Site) -> bool:
        """Whether this tap must see `site`; others may be fused away."""
        ...


@final
class Untapped(Tap):
    """The tap that changes nothing and asks for nothing."""

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return value

    @override
    def wants(self, site: Site) -> bool:
        return False


@final
class Chain(Tap):
    """Several taps as one: each sees what the one before it returned."""

    def __init__(self, taps: tuple[Tap, ...]) -> None:
        self._taps = taps

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        for tap in self._taps:
            value = tap(site, value)
        return value

    @override
    def wants(self, site: Site) -> bool:
        return any(tap.wants(site) for tap in self._taps)


Keep = Callable[[str, Tensor], Tensor]  # a name and a tensor to the tensor that is kept


def as_it_is(_name: str, value: Tensor) -> Tensor:
    """Keeps a tensor in memory."""
    return value


@final
class Recorder(Tap):
    """Keeps a reference to the activation at each of `sites`, as later taps will not see it change.

    No copy is made: a pure forward never writes into what it has produced. `keep` may put it
    elsewhere.
    """

    def __init__(self, sites: Sites, keep: Keep = as_it_is) -> None:
        self._sites, self._keep = frozenset(sites), keep
        self._seen: dict[Site, Tensor] = {}

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site in self._sites:
            self._seen[site] = self._keep(str(site), value)
        return value

    @override
    def wants(self, site: Site) -> bool:
        return site in self._sites

    def recorded(self) -> Mapping[Site, Tensor]:
        """What was seen, by site."""
        return self._seen


class Enough(Exception):  # noqa: N818 - no error: what was asked for has been passed
    """Ends a forward that runs for its taps' sake; raised by `Until`."""


@final
class Until(Tap):
    """Ends the forward once each of `sites` has been passed; last in its chain.

    Raises:
        Enough: Then; a pure forward leaves nothing behind, wherever it ends.
    """

    def __init__(self, sites: Sites) -> None:
        self._missing = set(sites)

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        self._missing.discard(site)
        if not self._missing:
            raise Enough
        return value

    @override
    def wants(self, site: Site) -> bool:
        return False


UNTAPPED = Untapped()


def chain(*taps: Tap) -> Tap:
    """One tap that applies `taps` in order; associative, with `UNTAPPED` as its neutral element."""
    parts = tuple(tap for tap in taps if tap is not UNTAPPED)
    if not parts:
        return UNTAPPED
    return parts[0] if len(parts) == 1 else Chain(parts)
