"""Taps of a differentiated pass: where its graph begins, and what must not be fused in it."""

from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.run import in_order
from workbench.core.sites import Site, Sites
from workbench.core.tap import Tap


@final
class Leaves(Tap):
    """Makes the activation at each site a node of the graph, whose gradient can be asked for."""

    def __init__(self, sites: Sites) -> None:
        self._sites = sites
        self._nodes: dict[Site, Tensor] = {}

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site not in self._sites:
            return value
        # A node of its own: two sites may pass one tensor on, the stream and what reads it.
        node = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        self._nodes[site] = node
        return node

    @override
    def wants(self, site: Site) -> bool:
        return site in self._sites

    def found(self) -> dict[Site, Tensor]:
        """The nodes in the order of the sites asked for.

        Raises:
            NotRecordedError: If the forward never passed one.
        """
        return in_order(self._nodes, self._sites)


@final
class Unfused(Tap):
    """Asks for every pattern, so that attention is made of parts that have all derivatives."""

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return value

    @override
    def wants(self, site: Site) -> bool:
        return site.short in ("attn.hook_pattern", "cross_attn.hook_pattern")
