"""Direct logit attribution: what each component writes, read along the metric's direction.

DLA(u) = <z_u, g>, with g the gradient of the metric at the last residual stream, its final norm's
scale frozen at the clean run's. The scale frozen, a linear metric is linear in the stream, so the
contributions of all components and the constant of the unembedding add up to the metric.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.attribution.attribution import Kind
from workbench.attribution.method import AttributionMethod, Scores
from workbench.core.data import Batch, TokenContrast
from workbench.core.errors import OptionError
from workbench.core.metrics import TokenMetric
from workbench.core.protocols import Model
from workbench.core.result import Axis, Check
from workbench.core.run import pick, run
from workbench.core.sites import Site, Sites, select
from workbench.core.tap import Tap

EMBEDS = ("hook_embed", "hook_pos_embed", "hook_token_type_embed")
WRITERS = (*EMBEDS, "attn.hook_result", "hook_attn_out", "hook_mlp_out")
_SCALE = Site("ln_final.hook_scale")


@final
@dataclass(frozen=True)
class DirectLogitAttribution(AttributionMethod):
    """Contributions of embedding, heads, biases and MLPs to the metric; one forward.

    Components x layers; the embedding stands in the column of layer 0, the constant of the final
    norm and unembedding in the last. The final norm's scale is frozen (the additive variant).
    """

    source: ClassVar[str] = "Elhage et al. 2021, transformer-circuits.pub/2021/framework"
    kind: ClassVar[Kind] = "contribution"
    offered: ClassVar[tuple[str, ...]] = ("component", "layer")

    @override
    def sites(self, model: Model) -> Sites:
        return select(lambda site: site.short in WRITERS, model.sites)

    @override
    def scores(
        self,
        model: Model,
        contrast: TokenContrast,
        metric: TokenMetric,
        sites: Sites,
        axes: tuple[str, ...],
    ) -> Scores:
        foreign = [str(site) for site in sites if site not in self.sites(model)]
        if foreign:
            wanted = "sites that add to the residual stream: " + ", ".join(WRITERS)
            raise OptionError("sites", wanted, foreign)
        last = AtLast(sites, contrast.clean)
        final = Site("blocks.{}.hook_resid_post", model.sizes.n_layers - 1)
        clean = run(model, contrast.clean, record=[final], positions="last", tap=last)
        corrupt = run(model, contrast.corrupt, positions="last", vocabulary=metric.vocabulary)
        stream = pick(clean[final], contrast.clean.last[:, None])[:, 0]  # example d_model
        slope, value = _slope(model, metric, stream)
        parts, labels = _parts(last.seen, slope, model, constant=value - (stream * slope).sum(-1))
        total = parts.sum((1, 2))
        exact = metric(clean)
        checks = (
            Check("sum - metric", _worst(total - exact), metric.unit, "0 if nothing is left out"),
            Check("metric, clean", float(exact.mean()), metric.unit, "what the scores add up to"),
        )
        return Scores(*_along(parts, labels, axes), exact, metric(corrupt), checks)


@final
class AtLast(Tap):
    """Keeps what each site holds at every row's last token, and nothing else."""

    def __init__(self, sites: Sites, batch: Batch) -> None:
        self._sites, self._columns = frozenset(sites), batch.last
        self.seen: dict[Site, Tensor] = {}

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site in self._sites:
            rows = torch.arange(len(value), device=value.device)
            self.seen[site] = value[rows, self._columns]
        return value

    @override
    def wants(self, site: Site) -> bool:
        return site in self._sites


@final
class FrozenScale(Tap):
    """Lets no gradient through the final norm's scale."""

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return value.detach() if site == _SCALE else value

    @override
    def wants(self, site: Site) -> bool:
        return site == _SCALE


def _slope(
    model: Model, metric: TokenMetric, stream: Float[Tensor, "example d_model"]
) -> tuple[Float[Tensor, "example d_model"], Float[Tensor, " example"]]:
    """The metric's gradient at the last stream with the norm's scale frozen, and its value."""
    with torch.enable_grad():
        leaf = stream.detach().requires_grad_()
        logits = model.unembed(leaf[:, None], FrozenScale(), vocabulary=metric.vocabulary)[:, 0]
        value = metric.read(logits, torch.arange(len(stream), device=stream.device))
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return slope, value.detach()


def _parts(
    seen: dict[Site, Tensor], slope: Tensor, model: Model, *, constant: Tensor
) -> tuple[Float[Tensor, "example component layer"], tuple[str, ...]]:
    """Every component's contribution; components a model lacks have no row."""
    n_heads, n_layers = model.sizes.n_heads, model.sizes.n_layers
    heads = [f"H{head}" for head in range(n_heads)]
    # Without its heads, what attention writes is not its bias alone.
    whole = {s.layer for s in seen if s.short == "hook_attn_out"} - {
        s.layer for s in seen if s.short == "attn.hook_result"
    }
    labels = ("embed", *heads, "attn" if whole else "attn_bias", "mlp", "constant")
    parts = slope.new_zeros(len(slope), len(labels), n_layers)
    for site, value in seen.items():
        if site.layer is None:
            parts[:, 0, 0] += (value * slope).sum(-1)
        elif site.short == "attn.hook_result":
            by_head = torch.einsum("ehd,ed->eh", value, slope)
            parts[:, 1 : 1 + n_heads, site.layer] = by_head
        elif site.short == "hook_attn_out":  # heads come before it: what they leave is the bias
            heads = parts[:, 1 : 1 + n_heads, site.layer].sum(1)
            parts[:, 1 + n_heads, site.layer] = (value * slope).sum(-1) - heads
        else:
            parts[:, -2, site.layer] = (value * slope).sum(-1)
    parts[:, -1, -1] = constant
    return parts, labels


def _along(
    parts: Float[Tensor, "example component layer"], labels: tuple[str, ...], axes: tuple[str, ...]
) -> tuple[Float[Tensor, "example ..."], tuple[Axis, ...]]:
    every = {
        "component": Axis("component", labels),
        "layer": Axis("layer", tuple(map(str, range(parts.shape[-1])))),
    }
    if "layer" not in axes:
        parts = parts.sum(2)
    elif "component" not in axes:
        parts = parts.sum(1)
    return parts, tuple(every[axis] for axis in axes)


def _worst(difference: Tensor) -> float:
    return float(difference[difference.abs().argmax()])


METHOD = DirectLogitAttribution()
