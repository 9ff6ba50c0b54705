"""Activation patching: run one prompt with another's activation in one place, and see the metric.

Effect = metric(base with the donor's value at the place) - metric(base). Noising takes the clean
prompt as base and the corrupt one as donor: what matters for the clean answer comes out negative.
Denoising is the other way round: what suffices to bring the clean answer back is positive.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Tensor
from typing_extensions import override

from workbench.attribution.attribution import Kind
from workbench.attribution.method import AttributionMethod, Scores
from workbench.core.data import Batch, TokenContrast
from workbench.core.errors import OptionError
from workbench.core.interventions import Intervention
from workbench.core.metrics import TokenMetric
from workbench.core.operators import set as set_to
from workbench.core.plan import Plan
from workbench.core.protocols import Model
from workbench.core.result import Axis, Check
from workbench.core.run import run
from workbench.core.sites import Site, Sites, select
from workbench.core.sweep import sweep
from workbench.core.trace import Trace


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
        axes = _default_axes(axes, sites)
        given = run(
            model,
            donor,
            plan=plan,
            record=sites,
            positions="last",
            vocabulary=metric.vocabulary,
        )
        named = tuple(_axis(name, sites, given, base, model) for name in axes)
        parted = _parted(base, donor) if model.causal and plan.replayable else 0
        cells = list(_cells(sites, given, base, axes, parted))
        swept = sweep(model, base, cells, metric, plan=plan, max_tokens=self.max_tokens)
        shape = tuple(len(axis.labels) for axis in named)
        effects = swept.effects.T.reshape(-1, *shape)
        donor_value = metric(given)
        total = donor_value - swept.base
        checks = (
            Check("total effect", float(total.mean()), metric.unit, "metric(donor) - metric(base)"),
            Check("cells", float(len(cells)), "places", "each one exact"),
            Check("parted", float(parted), "position", "the prompts agree before it: effect 0"),
        )
        return Scores(effects, named, swept.base, donor_value, checks)


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


def _axis(name: str, sites: Sites, given: Trace, base: Batch, model: Model) -> Axis:
    if name == "layer":
        places = ((site if site.layer is None else site.layer) for site in sites)
        return Axis(name, tuple(map(str, places)))
    if name == "site":
        return Axis(name, tuple(map(str, sites)))
    if name == "head":
        heads = {given[site].shape[site.axes.index("head")] for site in sites}
        if len(heads) > 1:
            raise OptionError("sites", "sites with equally many heads", list(map(str, sites)))
        return Axis(name, tuple(f"H{head}" for head in range(heads.pop())))
    longest = base.tokens.shape[1]
    vocabulary = model.tokenizer
    if vocabulary is None or len(base.tokens) > 1:
        return Axis(name, tuple(map(str, range(longest))))
    return Axis(name, tuple(map(vocabulary.token_text, base.tokens[0].tolist())))


def _parted(base: Batch, donor: Batch) -> int:
    """The first position at which an example's prompts differ; beyond the last where none does."""
    apart = (base.tokens != donor.tokens).any(0).nonzero()
    return int(apart[0]) if len(apart) else base.tokens.shape[1]


def _cells(
    sites: Sites, given: Trace, base: Batch, axes: tuple[str, ...], parted: int
) -> Iterator[Intervention]:
    """One intervention per place, in the order of the axes; none acts before `parted`."""
    longest, by_position = base.tokens.shape[1], "pos" in axes
    for site in sites:
        operator = set_to(given[site])
        for position in range(longest) if by_position else (slice(parted, None),):
            same = isinstance(position, int) and position < parted
            for head in _heads(site, given[site]) if "head" in axes else (None,):
                yield Intervention(
                    site,
                    operator,
                    positions=position,
                    heads=None if head is None else [head],
                    strength=0.0 if same else 1.0,
                    optional=True,  # a row too short for a position keeps its effect of 0
                )


def _heads(site: Site, value: Tensor) -> range:
    return range(value.shape[site.axes.index("head")])


METHOD = ActivationPatching()
