"""Sites: addresses in the forward pass, spelt as the field spells them, and how they are chosen.

Wherever a site is accepted, so are its name, a glob (`blocks.*.hook_resid_post`), a list of
either, and a predicate. What selects nothing is an error that names the nearest sites.
"""

import fnmatch
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from typing_extensions import override

from workbench.core.axes import AXES
from workbench.core.errors import EmptySelectionError, UnknownNameError
from workbench.core.options import expect, iterated

_SITES: dict[tuple[str, int | None], Any] = {}  # only ever grows, by atomic steps
_LAYER = re.compile(r"\.([0-9]{1,6})\.")


@final
@dataclass(frozen=True, slots=True, eq=False, init=False)
class Site:
    """A place in the forward pass; prints and parses as TransformerLens's classic hook name.

    There is one object for each place, so that comparing and looking up, hundreds of times in each
    pass, cost next to nothing.

    >>> Site.parse("blocks.3.attn.hook_z")
    Site('blocks.3.attn.hook_z')
    >>> Site.parse("blocks.3.attn.hook_z").axes
    ('batch', 'pos', 'head', 'd_head')
    """

    name: str  # a key of AXES, with {} in the layer's place
    layer: int | None = None  # None outside the blocks

    def __new__(cls, name: str, layer: int | None = None) -> "Site":
        """The one site of this name and layer."""
        layer = None if layer is None else operator.index(layer)
        known = _SITES.get((name, layer))
        if known is not None:
            return known
        made = object.__new__(cls)
        object.__setattr__(made, "name", name)
        object.__setattr__(made, "layer", layer)
        return _SITES.setdefault((name, layer), made)

    def __init__(self, name: str, layer: int | None = None) -> None:
        """Nothing: `__new__` has made it, or found it."""

    @override
    def __reduce__(self) -> tuple[type["Site"], tuple[str, int | None]]:
        return Site, (self.name, self.layer)

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Reads a classic hook name.

        Raises:
            UnknownNameError: If no site of any architecture is spelt so; names the nearest.
        """
        found = _LAYER.search(text)
        layer = int(found.group(1)) if found else None
        name = _LAYER.sub(".{}.", text, count=1)
        if (
            name not in AXES
            or (layer is None) != ("{}" not in name)
            or str(cls(name, layer)) != text
        ):
            known = (known_name.format(layer or 0) for known_name in AXES)
            raise UnknownNameError("site", text, known)
        return cls(name, layer)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of this site's axes, in order."""
        return tuple(AXES[self.name].split())

    @property
    def stack(self) -> str:
        """Which stack it is in: `blocks`, `encoder` or `decoder`; "" outside the blocks."""
        return self.name.partition(".{}.")[0] if self.layer is not None else ""

    @property
    def short(self) -> str:
        """The name within its block, `attn.hook_z`; the whole name outside the blocks."""
        return self.name.split("{}.", 1)[-1]

    @override
    def __str__(self) -> str:
        return self.name.format(self.layer)

    @override
    def __repr__(self) -> str:
        return f"Site({str(self)!r})"


Sites = tuple[Site, ...]
Selector = str | Site | Sequence[str | Site] | Callable[[Site], bool]


def select(selector: Selector, known: Sites) -> Sites:
    """The sites of `known` that a name, glob, list or predicate chooses, in forward order.

    Raises:
        UnknownNameError: If a name or glob fits none of `known`; names the nearest.
        EmptySelectionError: If a predicate or an empty list chooses none.
    """
    if callable(selector):
        chosen = {site for site in known if selector(site)}
    else:
        parts = _parts(selector)
        chosen = {site for part in parts for site in _matching(part, known)}
    if not chosen:
        raise EmptySelectionError(f"The selection of sites is empty; the model has {len(known)}.")
    return tuple(site for site in known if site in chosen)


def one_site(selector: str | Site, known: Sites) -> Site:
    """The single site that `selector` names.

    Raises:
        UnknownNameError: If it fits none.
        EmptySelectionError: If it fits several.
    """
    chosen = select(selector, known)
    if len(chosen) != 1:
        raise EmptySelectionError(f"{selector} names {len(chosen)} sites where one is needed.")
    return chosen[0]


def patterns_of(selector: str | Site | Iterable[str | Site]) -> tuple[str, ...]:
    """A selector as text: names and globs, each checked to be spelt like a site.

    Raises:
        UnknownNameError: If a name is no site of any architecture.
        EmptySelectionError: If there is none.
    """
    patterns = tuple(str(part) for part in _parts(selector))
    if not patterns:
        raise EmptySelectionError("An intervention needs at least one site.")
    for pattern in patterns:
        if not is_glob(pattern):
            Site.parse(pattern)
    return patterns


def _parts(selector: str | Site | Iterable[str | Site]) -> tuple[str | Site, ...]:
    parts = (selector,) if isinstance(selector, str | Site) else iterated("sites", selector)
    return tuple(expect("sites", part, (str, Site), "names, globs or Sites") for part in parts)


def is_glob(pattern: str) -> bool:
    """Whether a pattern may match several sites."""
    return any(sign in pattern for sign in "*?[")


def _matching(part: str | Site, known: Sites) -> Sites:
    pattern = str(part)
    if is_glob(pattern):
        found = tuple(site for site in known if fnmatch.fnmatchcase(str(site), pattern))
    else:
        found = tuple(site for site in known if str(site) == pattern)
    if not found:
        raise UnknownNameError("site", pattern, map(str, known))
    return found
