"""What a steering method is: it makes a direction of positive and negative texts.

The call harvests both sides at the site that will be written to, so that what is read and what is
steered are the same place, and hands the rows to the method's equation.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.direction import Direction
from workbench.core.errors import EmptySelectionError, OptionError
from workbench.core.harvest import Progress, harvest
from workbench.core.modes import outside_inference
from workbench.core.options import iterated
from workbench.core.protocols import Model
from workbench.core.provenance import Provenance, hyper_parameters, provenance
from workbench.core.reading import ReadPosition, one_per_text
from workbench.core.registry import discover
from workbench.core.run import Check as Cancel
from workbench.core.sites import Site, one_site
from workbench.steering.quality import quality

Rows = Float[Tensor, "_text d"]  # both sides may have as many as they like
Texts = Sequence[str | Sequence[int]]
MINIMUM = 2  # texts on each side: a spread needs two


class SteeringMethod(ABC):
    """One way to find a direction; its fields are its hyper-parameters."""

    source: ClassVar[str]

    @abstractmethod
    def vector(self, positive: Rows, negative: Rows) -> Float[Tensor, " d"]:
        """The vector to add, in the activation's unit, pointing to the positive side."""

    @outside_inference
    def __call__(  # noqa: PLR0913 - two sides, a place to read, and who watches
        self,
        model: Model,
        *,
        positive: Texts,
        negative: Texts,
        site: str | Site,
        position: ReadPosition = "last",
        label: str = "",
        progress: Progress | None = None,
        check: Cancel | None = None,
    ) -> Direction:
        """The direction from negative to positive texts at a site, with its quality card.

        Costs one forward per text, up to the site's block.

        Raises:
            UnknownNameError: If the model has no such site.
            EmptySelectionError: If a side has fewer than two texts.
            OptionError: If both sides have the same mean, or the site has heads.
            PromptError: If a text cannot be run.
        """
        place, position = _place(site, model), one_per_text(position)
        yes, no = _sides(positive, negative)
        rows = harvest(
            model, [*yes, *no], [place], position=position, progress=progress, check=check
        ).rows[place]
        made_by = provenance(
            model,
            method=type(self).__name__,
            source=self.source,
            data=[list(yes), list(no)],
            parameters={**hyper_parameters(self), "site": str(place), "position": position},
        )
        above, below = rows.float().split([len(yes), len(no)])
        return self._direction(place, above, below, made_by, label)

    def _direction(
        self, site: Site, positive: Rows, negative: Rows, made_by: Provenance, label: str
    ) -> Direction:
        vector, both = self.vector(positive, negative), torch.cat([positive, negative])
        length = torch.linalg.vector_norm(vector)
        if not float(length) > 0:
            wanted = "texts whose activations differ"
            raise OptionError("positive and negative", wanted, "equal means")
        unit_vector = vector / length
        return Direction(
            site=site,
            vector=vector,
            gap=float((positive.mean(0) - negative.mean(0)) @ unit_vector),
            sigma=_spread(positive @ unit_vector, negative @ unit_vector),
            norm=float(torch.linalg.vector_norm(both, dim=-1).mean()),
            unit="activation",
            checks=quality(self.vector, positive, negative),
            provenance=made_by,
            label=label,
        )


def _spread(yes: Float[Tensor, " positive"], no: Float[Tensor, " negative"]) -> float:
    """The standard deviation within a side, both sides pooled: the gap between them is none."""
    squares = (yes - yes.mean()).square().sum() + (no - no.mean()).square().sum()
    return float((squares / (len(yes) + len(no) - 2)).sqrt())


def _place(site: str | Site, model: Model) -> Site:
    place = one_site(site, model.sites)
    if place.axes[:2] != ("batch", "pos") or len(place.axes) != 3:
        kinds = "one with a single vector per token (batch pos d)"
        raise OptionError("site", kinds, f"{place} ({' '.join(place.axes)})")
    return place


def _sides(positive: Texts, negative: Texts) -> tuple[Texts, Texts]:
    yes, no = _side("positive", positive), _side("negative", negative)
    if min(len(yes), len(no)) < MINIMUM:
        raise EmptySelectionError(
            f"Each side needs {MINIMUM} texts or more, got {len(yes)} positive and {len(no)} "
            "negative."
        )
    return yes, no


def _side(option: str, side: Texts) -> Texts:
    texts = () if isinstance(side, str) else tuple(iterated(option, side))
    if isinstance(side, str) or any(isinstance(text, int) for text in texts):
        raise OptionError(option, "a list of texts", side)
    return texts


METHODS = discover("workbench.steering.methods", "METHOD", SteeringMethod)
