"""Hook points as attributes of the parts of a facade: `model.blocks[0].attn.hook_pattern`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, final

from torch import Tensor

from workbench.compat.transformer_lens.hooks import SitePoint
from workbench.compat.transformer_lens.lending import Loan
from workbench.core.errors import OptionError

Find: TypeAlias = Callable[[str], SitePoint | None]
RunBlock: TypeAlias = Callable[[int, Tensor, Tensor | None], Tensor]


def _no_point(_: str) -> SitePoint | None:
    return None


def _no_run(layer: int, stream: Tensor, mask: Tensor | None) -> Tensor:
    raise OptionError("blocks[...]", "called on a facade", (layer, stream.shape, mask))


@final
@dataclass(frozen=True, eq=False)
class Shown:
    """What the parts of a facade share: which weights are lent, its hook points, and its runs."""

    loan: Loan = field(default_factory=Loan)
    find: Find = _no_point
    run: RunBlock = _no_run


class Place:
    """A part of a facade, `blocks.0.attn` say; the hook points there are its attributes."""

    def __init__(self, name: str, find: Find) -> None:
        self._name, self._find = name, find

    def __getattr__(self, name: str) -> SitePoint:
        """The hook point of that name, here.

        Raises:
            AttributeError: If there is none.
        """
        found = self._find(f"{self._name}.{name}") if name.startswith("hook_") else None
        if found is None:
            raise AttributeError(f"{type(self).__name__} has no {name!r}, and no such hook point.")
        return found
