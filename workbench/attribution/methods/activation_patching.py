"""Activation patching: run one prompt with another's activation in one place, and see the metric.

Effect = metric(base with the donor's value at the place) - metric(base). Noising takes the clean
prompt as base and the corrupt one as donor: what matters for the clean answer comes out negative.
Denoising is the other way round: what suffices to bring the clean answer back is positive.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from typing_extensions import override

from workbench.attribution.attribution import Kind
from workbench.attribution.method import AttributionMethod, Scores
from workbench.core.data import TokenContrast
from workbench.core.errors import OptionError
from workbench.core.grid import Grid
from workbench.core.metrics import TokenMetric
from workbench.core.plan import Plan
from workbench.core.protocols import Model
from workbench.core.sites import Sites, select
from workbench.core.sweep import sweep


@final
@dataclass(frozen=True)
class ActivationPatching(AttributionMethod):
    """Exact effects of every place, by as many changed runs as places, batched and restarted.

    Where base and donor read the same tokens, a causal model does the same, and the effect is 0:
    places before the first token that differs are known without a run.

    Axes: `layer` (or `site`, where sites of several kinds are asked for), `pos`, `head`; an axis
    left out is patched as a whole.
    """

    direction: Literal["noising", "denoising"] = "noising"
    max_tokens: int = 1024
    source: ClassVar[str] = (
        "Vig et al. 2020, arXiv:2004.12265; Heimersheim & Nanda 2024, 2404.15255"
    )
    kind: ClassVar[Kind] = "effect"
    offered: ClassVar[tuple[str, ...]] = ("layer", "site", "pos", "head")

    @override
    def sites(self, model: Model) -> Sites:
        return select("blocks.*.hook_resid_pre", model.sites)

    @override
    def scores(
        self,
        model: Model,
        contrast: TokenContrast,
        metric: TokenMetric,
        sites: Sites,
        axes: tuple[str, ...],
        plan: Plan,
    ) -> Scores:
        base, donor = contrast.clean, contrast.corrupt
        if self.direction == "denoising":
            base, donor = donor, base
        elif self.direction != "noising":
            raise OptionError("direction", "'noising' or 'denoising'", self.direction)
        grid = Grid(list(sites), _default_axes(axes, sites))
        swept = sweep(
            model, base, grid, metric, source=donor, plan=plan, max_tokens=self.max_tokens
        )
        effects = swept.effects.movedim(-1, 0)
        donated = swept.base if swept.source is None else swept.source
        return Scores(effects, swept.axes, swept.base, donated, swept.checks)


def _default_axes(axes: tuple[str, ...], sites: Sites) -> tuple[str, ...]:
    """All that the sites have, where nothing narrower was asked for.

    Raises:
        OptionError: If an axis does not fit the sites.
    """
    several = len({site.name for site in sites}) > 1
    if axes == ActivationPatching.offered:
        heads = ("head",) if all("head" in site.axes for site in sites) else ()
        return ("site" if several else "layer", "pos", *heads)
    if several and "layer" in axes:
        raise OptionError("axes", "with 'site' for 'layer': the sites are of several kinds", axes)
    if ("layer" in axes) == ("site" in axes):
        raise OptionError("axes", "with either 'layer' or 'site'", axes)
    without = [str(site) for site in sites if "head" in axes and "head" not in site.axes]
    if without:
        raise OptionError("axes", f"without 'head': {without[0]} has no heads", axes)
    return axes


METHOD = ActivationPatching()
