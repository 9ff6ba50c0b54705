"""A model with its task and the exact effects of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from workbench.core.data import Contrast
from workbench.core.protocols import Model


@final
@dataclass(frozen=True, eq=False)
class KnownTruth:
    """A hand-built model, a contrast it solves, and what each head does on it.

    `resample` maps (layer, head) to the effect on the target's logit of replacing the head's
    output by the corrupt prompt's; heads that are not listed have none.
    """

    name: str
    model: Model
    contrast: Contrast
    clean: float  # the target's logit on the clean prompt
    corrupt: float
    resample: Mapping[tuple[int, int], float]
