"""The hooks of one facade: who acts where, in which order, and for how long.

Notable: nothing here is on a model. Hooks that were added stay with the facade and are taken as
they are when a run starts; those of a `hooks()` block belong to its context, so threads that share
a facade never see each other's. What functions keep in `hook.ctx` is each thread's own too.
"""
# ruff: noqa: FBT001, FBT002, A002 - the classic signatures

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Lock, local
from typing import Any, Literal, Protocol, TypeAlias, final

from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import EmptySelectionError, OptionError, UnknownNameError

Direction: TypeAlias = Literal["fwd", "bwd"]
Names: TypeAlias = str | Callable[[str], bool]


class HookFunction(Protocol):
    """What a caller hangs on a site: the activation (or gradient), and where it is.

    It returns the tensor to go on with, or None to keep the one given, which it may have edited.
    """

    def __call__(self, value: Any, *, hook: Any) -> Any:
        """What the run goes on with."""
        ...


Pairs: TypeAlias = Sequence[tuple[Names, Callable[..., Any]]]


@final
@dataclass(frozen=True, eq=False)
class Registered:
    """One function, the names it acts at and its place in the order."""

    names: frozenset[str]
    function: Callable[..., Any]
    direction: Direction
    permanent: bool = False
    level: int | None = None
    place: int = 0


@final
@dataclass(frozen=True, eq=False)
class Here:
    """What a function is told: the name of its site, its context and the positions of this pass.

    `positions` (batch pos) are absolute, so that a function means the same in a decode step.
    """

    name: str
    ctx: dict[Any, Any]
    positions: Int[Tensor, "batch pos"] | None = None

    def layer(self) -> int:
        """The block it is in.

        Raises:
            OptionError: If it is outside the blocks.
        """
        parts = self.name.split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise OptionError("hook.layer()", "asked inside a block", self.name)
        return int(parts[1])


@final
@dataclass(frozen=True, eq=False)
class _Open:
    """One open `hooks()` block of a facade; `key` is its own, whatever is removed from it."""

    owner: "Hooks"
    hooks: tuple[Registered, ...]
    key: object


def _without(
    hook: Registered, name: str | None, direction: str, level: int | None, permanent: bool
) -> Registered:
    """A hook without the names that it is removed from."""
    other = direction not in ("both", hook.direction)
    kept = hook.permanent and not permanent
    if other or kept or (level is not None and hook.level != level and not permanent):
        return hook
    return replace(hook, names=frozenset() if name is None else hook.names - {name})


@final
class _Contexts(local):
    """What functions keep at each site between runs; every thread begins with none."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[Any, Any]] = {}


_OPEN: ContextVar[tuple[_Open, ...]] = ContextVar("open hook blocks", default=())


@final
class Hooks:
    """The hooks of one facade."""

    def __init__(self, enabled: Callable[[], Sequence[str]], names: Sequence[str]) -> None:
        """`names` are all there are; `enabled()` those a predicate chooses from at the moment."""
        self._enabled, self._names = enabled, tuple(names)
        self._added: tuple[Registered, ...] = ()
        self._order, self._lock = count(1), Lock()
        self._contexts = _Contexts()

    @property
    def level(self) -> int:
        """How many blocks of this facade are open in this context."""
        return len(self._blocks())

    def current(self) -> tuple[Registered, ...]:
        """All hooks of a run that starts now, in the order in which they act."""
        opened = (hook for block in self._blocks() for hook in block.hooks)
        return tuple(sorted((*self._added, *opened), key=lambda hook: hook.place))

    def add(
        self,
        names: Names,
        function: Callable[..., Any],
        *,
        direction: Direction = "fwd",
        permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Adds a hook that stays."""
        made = self._made(names, function, direction, permanent, level, prepend)
        with self._lock:
            self._added = (*self._added, made)

    @contextmanager
    def block(self, forward: Pairs, backward: Pairs, *, keep: bool) -> Generator[None]:
        """Hooks of this context, until the block ends; `keep` leaves them on the facade then."""
        level = self.level + 1
        fwd = [self._made(names, f, "fwd", False, level, False) for names, f in forward]  # noqa: FBT003
        bwd = [self._made(names, f, "bwd", False, level, False) for names, f in backward]  # noqa: FBT003
        key = object()
        _OPEN.set((*_OPEN.get(), _Open(self, (*fwd, *bwd), key)))
        try:
            yield
        finally:
            left = [hook for block in _OPEN.get() if block.key is key for hook in block.hooks]
            _OPEN.set(tuple(block for block in _OPEN.get() if block.key is not key))
            if keep:
                with self._lock:
                    self._added = (*self._added, *left)

    def reset(
        self,
        *,
        direction: Literal["fwd", "bwd", "both"] = "both",
        permanent: bool = False,
        level: int | None = None,
        name: str | None = None,
    ) -> None:
        """Removes hooks; without a level also those of this context's open blocks.

        Those at one `name` go on acting at their others.

        Raises:
            OptionError: If the direction is none.
        """
        if direction not in ("fwd", "bwd", "both"):
            raise OptionError("direction", "'fwd', 'bwd' or 'both'", direction)

        def left(hooks: Sequence[Registered]) -> tuple[Registered, ...]:
            chosen = (_without(hook, name, direction, level, permanent) for hook in hooks)
            return tuple(hook for hook in chosen if hook.names)

        with self._lock:
            self._added = left(self._added)
        _OPEN.set(
            tuple(
                replace(block, hooks=left(block.hooks)) if block.owner is self else block
                for block in _OPEN.get()
            )
        )

    def at(self, name: str, direction: Direction) -> list[Registered]:
        """The hooks at a name, in order."""
        return [h for h in self.current() if name in h.names and h.direction == direction]

    def take(self, other: "Hooks") -> None:
        """Adds what was added to another, and a copy of what its functions keep in this thread."""
        with self._lock:
            self._added = (*self._added, *other._added)  # noqa: SLF001 - of our own kind
        for name, context in other._contexts.kept.items():  # noqa: SLF001
            self.context(name).update(copy.deepcopy(context))

    def context(self, name: str) -> dict[Any, Any]:
        """What this thread's functions keep at a site; other threads have one of their own."""
        return self._contexts.kept.setdefault(name, {})

    def clear_contexts(self) -> None:
        """Empties this thread's `ctx` of every site."""
        for context in self._contexts.kept.values():
            context.clear()

    def chosen(self, names: Names, option: str = "a hook's name") -> frozenset[str]:
        """The names that a name or a predicate chooses.

        A predicate chooses among what the classic flags enable, or, where that is nothing, among
        all sites.

        Raises:
            UnknownNameError: If a name is none; names the nearest.
            EmptySelectionError: If a predicate chooses nothing.
        """
        if isinstance(names, str):
            if names not in self._names:
                raise UnknownNameError("site", names, self._names)
            return frozenset({names})
        found = list(filter(names, self._enabled())) or list(filter(names, self._names))
        if not found:
            raise EmptySelectionError(f"{option}: the predicate is true of no site.")
        return frozenset(found)

    def _blocks(self) -> tuple[_Open, ...]:
        return tuple(block for block in _OPEN.get() if block.owner is self)

    def _made(
        self,
        names: Names,
        function: Callable[..., Any],
        direction: Direction,
        permanent: bool,
        level: int | None,
        prepend: bool,
    ) -> Registered:
        if direction not in ("fwd", "bwd"):
            raise OptionError("dir", "'fwd' or 'bwd'", direction)
        if not callable(function):
            raise OptionError("a hook", "a function of (value, hook)", function)
        place = -next(self._order) if prepend else next(self._order)
        return Registered(self.chosen(names), function, direction, permanent, level, place)


@final
@dataclass(frozen=True, eq=False)
class SitePoint:
    """One site of a facade as a classic hook point: its name, context and hooks."""

    name: str
    hooks: Hooks = field(repr=False)

    @property
    def ctx(self) -> dict[Any, Any]:
        """What this thread's hooks keep here between runs."""
        return self.hooks.context(self.name)

    @property
    def fwd_hooks(self) -> list[Registered]:
        """The functions on the activation, in order."""
        return self.hooks.at(self.name, "fwd")

    @property
    def bwd_hooks(self) -> list[Registered]:
        """The functions on the gradient, in order."""
        return self.hooks.at(self.name, "bwd")

    def layer(self) -> int:
        """The block it is in; an error outside the blocks."""
        return Here(self.name, {}).layer()

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
        dir: Literal["fwd", "bwd", "both"] = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes the hooks that are here."""
        self.hooks.reset(direction=dir, permanent=including_permanent, level=level, name=self.name)

    def clear_context(self) -> None:
        """Empties `ctx`."""
        self.ctx.clear()

    @override
    def __repr__(self) -> str:
        return f"SitePoint({self.name!r})"
