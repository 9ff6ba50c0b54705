"""`HookPoint` and `HookedRootModule`: classic hooks in a module of the user's own.

Notable: no hook of torch's is used. A point calls its functions itself, and they belong to the root
module, those of a `hooks()` block to its context, as in the facade.
"""
# ruff: noqa: FBT001, FBT002, A002, PLR0913 - the classic names and signatures

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from workbench.compat.transformer_lens.hooks import Direction, Hooks, Names, Pairs, Registered
from workbench.compat.transformer_lens.recording import NamesFilter
from workbench.compat.transformer_lens.slices import Slice, SliceInput
from workbench.compat.transformer_lens.taps import grounded, watched
from workbench.core.errors import EmptySelectionError, OptionError, ShapeError, UnknownNameError

OneOrBoth = Literal["fwd", "bwd", "both"]
_BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result")


@final
class HookPoint(nn.Module):
    """The identity, on which functions of (value, hook) can be hung; `name` is set by `setup()`."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.hooks = Hooks(lambda: ("",), ("",))

    @property
    def ctx(self) -> dict[Any, Any]:
        """What this thread's hooks keep here between runs."""
        return self.hooks.context(self.name)

    @property
    def fwd_hooks(self) -> list[Registered]:
        """The functions on the value, in order."""
        return self.hooks.at(self.name, "fwd")

    @property
    def bwd_hooks(self) -> list[Registered]:
        """The functions on the gradient, in order."""
        return self.hooks.at(self.name, "bwd")

    def layer(self) -> int:
        """The number after the first dot of its name.

        Raises:
            OptionError: If there is none.
        """
        parts = self.name.split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise OptionError("hook.layer()", "asked inside a numbered block", self.name)
        return int(parts[1])

    def add_hook(
        self,
        hook: Callable[..., Any],
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Adds a hook that stays."""
        self.hooks.add(
            self.name, hook, direction=dir, permanent=is_permanent, level=level, prepend=prepend
        )

    def add_perma_hook(self, hook: Callable[..., Any], dir: Direction = "fwd") -> None:
        """Adds a hook that only `including_permanent` removes."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self,
        dir: OneOrBoth = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes the hooks that are here."""
        self.hooks.reset(direction=dir, permanent=including_permanent, level=level, name=self.name)

    def clear_context(self) -> None:
        """Empties `ctx`."""
        self.ctx.clear()

    @override
    def forward(self, x: Any) -> Any:
        """The value as its functions leave it; each gets a copy of its own."""
        for hook in self.fwd_hooks:
            own = x.clone() if isinstance(x, Tensor) else x
            given = hook.function(own, hook=self)
            x = own if given is None else given
        backward = [hook.function for hook in self.bwd_hooks]
        if backward and isinstance(x, Tensor) and torch.is_grad_enabled():
            return watched(x, backward, self, _any)
        return x


class HookedRootModule(nn.Module):
    """A module of the user's own with hook points in it; call `setup()` last in `__init__`."""

    def __init__(self) -> None:
        super().__init__()
        self.mod_dict: dict[str, nn.Module] = {}
        self.hook_dict: dict[str, HookPoint] = {}
        self._hooks = Hooks(tuple, ())

    @final
    def setup(self) -> None:
        """Names the points after where they are."""
        self.mod_dict = {name: module for name, module in self.named_modules() if name}
        points = {n: m for n, m in self.mod_dict.items() if isinstance(m, HookPoint)}
        self.hook_dict, self._hooks = points, Hooks(lambda: tuple(points), tuple(points))
        for name, point in points.items():
            point.name, point.hooks = name, self._hooks

    @final
    def hook_points(self) -> list[HookPoint]:
        """Every hook point."""
        return list(self.hook_dict.values())

    @property
    def context_level(self) -> int:
        """How many `hooks()` blocks are open here."""
        return self._hooks.level

    @final
    def add_hook(
        self,
        name: Names,
        hook: Callable[..., Any],
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Adds a hook that stays until `reset_hooks`.

        Raises:
            UnknownNameError: If the name is no hook point.
        """
        self._hooks.add(
            name, hook, direction=dir, permanent=is_permanent, level=level, prepend=prepend
        )

    @final
    def add_perma_hook(self, name: Names, hook: Callable[..., Any], dir: Direction = "fwd") -> None:
        """Adds a hook that only `reset_hooks(including_permanent=True)` removes."""
        self._hooks.add(name, hook, direction=dir, permanent=True)

    @final
    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: OneOrBoth = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes hooks, those of open blocks too unless a level is named."""
        if clear_contexts:
            self.clear_contexts()
        self._hooks.reset(direction=direction, permanent=including_permanent, level=level)

    @final
    def remove_all_hook_fns(
        self,
        direction: OneOrBoth = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes hooks and leaves their contexts."""
        self._hooks.reset(direction=direction, permanent=including_permanent, level=level)

    @final
    def clear_contexts(self) -> None:
        """Empties `hook.ctx` of every point."""
        self._hooks.clear_contexts()

    @final
    @contextmanager
    def hooks(
        self,
        fwd_hooks: Pairs = (),
        bwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Generator["HookedRootModule"]:
        """Hooks of this block and this thread; they go when it ends, also by an exception."""
        with self._hooks.block(fwd_hooks, bwd_hooks, keep=not reset_hooks_end):
            try:
                yield self
            finally:
                if clear_contexts:
                    self.clear_contexts()

    @final
    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Pairs = (),
        bwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The module's own forward with hooks of this call only.

        The forward's keyword arguments go into `model_kwargs`: a misspelt option of this function
        is then an error, and not an argument of the forward.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **(model_kwargs or {}))

    @final
    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Adds hooks that fill `cache` in every run from now on, and returns it."""
        found, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, cache
        )
        for name, hook in forward:
            self.add_hook(name, hook)
        for name, hook in backward:
            self.add_hook(name, hook, "bwd")
        return found

    @final
    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, Tensor], Pairs, Pairs]:
        """A dictionary, and hooks that fill it when they are given to a run.

        Raises:
            UnknownNameError: If a name is no hook point.
            EmptySelectionError: If nothing is chosen.
        """
        found: dict[str, Tensor] = {} if cache is None else cache
        kept = _Kept(device, remove_batch_dim, pos_slice)

        def save(value: Tensor, hook: HookPoint) -> None:
            found[hook.name] = kept.entry(hook.name, value)

        def save_slope(value: Tensor, hook: HookPoint) -> None:
            found[f"{hook.name}_grad"] = kept.entry(hook.name, value)

        names = self._wanted(names_filter)
        forward = [(name, save) for name in names]
        return found, forward, [(name, save_slope) for name in names] if incl_bwd else []

    @final
    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        fwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """What the forward returns, and the values at the points, by name.

        `incl_bwd` adds `name_grad`, the gradient of a scalar output; no parameter gets a `.grad`.
        `pos_slice` cuts the axis before the last, or before the heads of `hook_q` and its like.

        Raises:
            UnknownNameError: If a name is no hook point.
            EmptySelectionError: If nothing is chosen.
            ShapeError: If several rows would lose all but one.
        """
        kept = _Kept(device, remove_batch_dim, pos_slice)
        nodes: dict[str, Tensor] = {}

        def keep(value: Any, hook: HookPoint) -> Any:
            if incl_bwd:
                value = value if value.requires_grad else grounded(value)
            nodes[hook.name] = value
            return value

        pairs: list[tuple[Names, Callable[..., Any]]] = list(fwd_hooks)
        pairs += [(name, keep) for name in self._wanted(names_filter)]
        with (
            torch.set_grad_enabled(incl_bwd or torch.is_grad_enabled()),
            self.hooks(pairs, (), reset_hooks_end, clear_contexts),
        ):
            output = self(*model_args, **(model_kwargs or {}))
        entries = {name: kept.entry(name, value) for name, value in nodes.items()}
        if incl_bwd:
            slopes = torch.autograd.grad(
                output, list(nodes.values()), allow_unused=True, materialize_grads=True
            )
            for name, slope in zip(nodes, slopes, strict=True):
                entries[f"{name}_grad"] = kept.entry(name, slope)
        return output, entries

    def _wanted(self, names: NamesFilter) -> Sequence[str]:
        known = list(self.hook_dict)
        if names is None:
            return known
        if callable(names):
            found = list(filter(names, known))
            if not found:
                raise EmptySelectionError("names_filter: the predicate is true of no hook point.")
            return found
        asked = [names] if isinstance(names, str) else list(names)
        for name in asked:
            if name not in known:
                raise UnknownNameError("hook point", name, known)
        return [name for name in known if name in asked]


@final
@dataclass(frozen=True, eq=False)
class _Kept:
    """How entries are cut and where they are put; axes are told by the classic's names."""

    device: torch.device | str | None
    remove_batch_dim: bool
    pos_slice: Slice | SliceInput

    def entry(self, name: str, value: Tensor) -> Tensor:
        value, axis = value.detach(), -3 if name.endswith(_BY_HEAD) else -2
        if self.pos_slice is not None and value.ndim >= -axis:
            value = Slice.unwrap(self.pos_slice).apply(value, axis % value.ndim)
        if self.remove_batch_dim and value.shape[0] != 1:
            raise ShapeError(f"remove_batch_dim at {name}", "a single row", f"{value.shape[0]}")
        return (value[0] if self.remove_batch_dim else value).to(self.device)


def _any(new: object, value: Tensor) -> None:
    """A module of the user's own may pass on what it likes."""
