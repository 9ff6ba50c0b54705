"""Hooks of a facade: those of a block and a thread, those that stay, and their contexts."""
# ruff: noqa: FBT001, FBT002, A002 - the classic signatures

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from workbench.compat.transformer_lens.facade.state import State
from workbench.compat.transformer_lens.hooks import Direction, Names, Pairs, SitePoint

Facade = TypeVar("Facade", bound="Hooking")


class Hooking(State):
    """Where hooks are put, and how long they stay."""

    @contextmanager
    def hooks(
        self: Facade,
        fwd_hooks: Pairs = (),
        bwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Generator[Facade]:
        """Hooks of this block and this thread; they go when it ends, also by an exception."""
        with self._hooks.block(fwd_hooks, bwd_hooks, keep=not reset_hooks_end):
            try:
                yield self
            finally:
                if clear_contexts:
                    self.clear_contexts()

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
            UnknownNameError: If the name is no site.
        """
        self._hooks.add(
            name, hook, direction=dir, permanent=is_permanent, level=level, prepend=prepend
        )

    def add_perma_hook(self, name: Names, hook: Callable[..., Any], dir: Direction = "fwd") -> None:
        """Adds a hook that only `reset_hooks(including_permanent=True)` removes."""
        self._hooks.add(name, hook, direction=dir, permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes hooks, those of open blocks of this thread too unless a level is named."""
        if clear_contexts:
            self.clear_contexts()
        self._hooks.reset(direction=direction, permanent=including_permanent, level=level)

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes hooks and leaves their contexts."""
        self._hooks.reset(direction=direction, permanent=including_permanent, level=level)

    def clear_contexts(self) -> None:
        """Empties `hook.ctx` at every site."""
        self._hooks.clear_contexts()

    def hook_points(self) -> list[SitePoint]:
        """Every site as a hook point."""
        return list(self.hook_dict.values())

    @property
    def hook_embed(self) -> SitePoint:
        """The hook point of the token embedding."""
        return self._point("hook_embed")

    @property
    def hook_pos_embed(self) -> SitePoint:
        """The hook point of learned positions; an AttributeError where there are none."""
        return self._point("hook_pos_embed")

    def _point(self, name: str) -> SitePoint:
        if name not in self.hook_dict:
            raise AttributeError(f"{self.cfg.model_name} has no hook point {name!r}.")
        return self.hook_dict[name]

    @property
    def mod_dict(self) -> Mapping[str, SitePoint]:
        """The hook points by name: what hooks may be put on."""
        return self.hook_dict

    @property
    def context_level(self) -> int:
        """How many `hooks()` blocks of this facade are open here."""
        return self._hooks.level
