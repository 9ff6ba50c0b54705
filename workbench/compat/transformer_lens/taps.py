"""Classic hook functions as a tap of the core, forward and backward, and what they leave.

Notable: a function gets a copy of its own, so an edit in place counts where it is and nowhere
else; the next function, and the run, go on with what it left.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.compat.transformer_lens.hooks import Here, Registered
from workbench.core.axes import HEAD_INPUTS, READ_NORM
from workbench.core.errors import NeverActedError, NotRecordedError, OptionError
from workbench.core.operands import check_like
from workbench.core.sites import Site, Sites
from workbench.core.tap import Tap

Activation = Float[Tensor, "..."]
Where = Callable[[Site], Here]


@final
class HookTap(Tap):
    """Calls classic functions at their sites, in order."""

    def __init__(self, hooks: Sequence[Registered], where: Where) -> None:
        self._where = where
        self._forward = _by_site(hooks, "fwd")
        self._backward = _by_site(hooks, "bwd")
        self._changed: dict[tuple[bool, int | None], Site] = {}
        self.fired: set[str] = set()

    @property
    def any(self) -> bool:
        """Whether there is any hook."""
        return bool(self._forward or self._backward)

    @override
    def wants(self, site: Site) -> bool:
        return site in self._forward or site in self._backward

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        for hook in self._forward.get(site, ()):
            value = self._act(hook.function, site, value)
        backward = self._backward.get(site, ())
        if backward and torch.is_grad_enabled():
            functions = [hook.function for hook in backward]
            value = watched(value, functions, self._where(site), partial(_like, site))
        return value

    def _act(self, function: Callable[..., Any], site: Site, value: Tensor) -> Tensor:
        self.fired.add(str(site))
        own = value.clone()
        given = function(own, hook=self._where(site))
        new = own if given is None else given
        check_like(new, value, site)
        if site.short in HEAD_INPUTS or site.short in READ_NORM:
            self._refuse_both(site, value, new)
        return new

    def _refuse_both(self, site: Site, value: Tensor, new: Tensor) -> None:
        """Refuses changes of both a head's input and the norm that reads it.

        Raises:
            OptionError: If there are both.
        """
        if torch.equal(new, value):
            return
        kind = site.short in READ_NORM
        self._changed[kind, site.layer] = site
        other = self._changed.get((not kind, site.layer))
        if other is not None:
            raise OptionError(
                f"a hook that changes {site}", f"alone: another one is at {other}", ""
            )


def check_fired(tap: HookTap, names: Sequence[object], ended: str) -> None:
    """Refuses a run in which a hook asked for by its exact name was never reached.

    Raises:
        NeverActedError: If there is one.
    """
    for name in names:
        if isinstance(name, str) and name not in tap.fired:
            raise NeverActedError(f"The hook at {name} was never called: {ended}.")


@final
class Nodes(Tap):
    """Keeps the activation at each site, and makes it a node whose gradient can be asked for."""

    def __init__(self, sites: Sites, *, gradients: bool) -> None:
        self._sites, self._gradients = frozenset(sites), gradients
        self.seen: dict[Site, Tensor] = {}

    @override
    def wants(self, site: Site) -> bool:
        return site in self._sites

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site not in self._sites:
            return value
        if self._gradients:
            value = value.view_as(value) if value.requires_grad else grounded(value)
        self.seen[site] = value
        return value


def gradients_at(output: object, nodes: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """The gradient of a scalar output at each node, zero where it does not depend on it.

    No parameter's `.grad` is touched.

    Raises:
        OptionError: If the output is no scalar.
        NotRecordedError: If there is no node.
    """
    if not isinstance(output, Tensor) or output.numel() != 1:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise OptionError("incl_bwd", "asked of a scalar output, return_type='loss' say", shape)
    if not nodes:
        raise NotRecordedError("incl_bwd: no site was recorded, so there is no gradient to keep.")
    values = list(nodes.values())
    found = torch.autograd.grad(output, values, allow_unused=True, materialize_grads=True)
    return dict(zip(nodes, found, strict=True))


def grounded(value: Tensor) -> Tensor:
    """The value as a leaf of a graph that begins here: the weights are frozen."""
    return value.detach().requires_grad_()


def _like(site: Site, new: object, value: Tensor) -> None:
    check_like(new, value, site)


def watched(
    value: Activation,
    functions: Sequence[Callable[..., Any]],
    here: object,
    check: Callable[[object, Tensor], None],
) -> Activation:
    """The same value; in the backward pass the functions see, and may replace, its gradient."""
    value = value if value.requires_grad else grounded(value)

    def change(gradient: Tensor) -> Tensor:
        for function in functions:
            own = gradient.clone()
            given = function(own, hook=here)
            new = given[0] if isinstance(given, tuple) else given
            new = own if new is None else new
            check(new, gradient)
            gradient = new
        return gradient

    passed: Any = Watched.apply(value, change)
    return passed


@final
class Watched(torch.autograd.Function):
    """The identity, whose gradient goes through a function."""

    @staticmethod
    @override
    def forward(ctx: Any, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The value."""
        ctx.change = change
        return value.view_as(value)

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The changed gradient."""
        return ctx.change(gradients[0]), None


def _by_site(hooks: Sequence[Registered], direction: str) -> dict[Site, list[Registered]]:
    found: dict[Site, list[Registered]] = {}
    for hook in hooks:
        if hook.direction == direction:
            for name in hook.names:
                found.setdefault(Site.parse(name), []).append(hook)
    return found
