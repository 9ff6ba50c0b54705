"""Direct logit attribution: what each component writes, read along the metric's direction.

DLA(u) = <z_u, g>, with g the gradient of the metric at the last residual stream, its final norm's
scale frozen at the clean run's. The scale frozen, a linear metric is linear in the stream, so the
contributions of all components and the constant of the unembedding add up to the metric.
"""

from collections.abc import Mapping
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
from workbench.core.ledger import Ledger
from workbench.core.metrics import TokenMetric
from workbench.core.modes import forward_only, with_graph
from workbench.core.plan import Plan
from workbench.core.program import compile_plan
from workbench.core.protocols import Model
from workbench.core.result import Axis, Check
from workbench.core.run import pick, run
from workbench.core.sites import Site, Sites, select
from workbench.core.tap import UNTAPPED, Tap, chain

EMBEDS = ("hook_embed", "hook_pos_embed", "hook_token_type_embed")
WRITERS = (*EMBEDS, "attn.hook_result", "hook_attn_out", "hook_mlp_out")
STREAMS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
OPEN = (*STREAMS, "hook_attn_out")  # where what a plan adds is no component's own
POST_NORM, BETWEEN = "hook_normalized_resid_post", ("embed.ln", "mlm_head", "pooler")
_SCALE = Site("ln_final.hook_scale")


@final
@dataclass(frozen=True)
class DirectLogitAttribution(AttributionMethod):
    """Contributions of embedding, heads, biases and MLPs to the metric; two forwards.

    Components x layers; the embedding stands in the column of layer 0, the constant of the final
    norm and unembedding in the last. The final norm's scale is frozen (the additive variant).
    Under a plan a component is what it writes as changed, and the row `plan` is what the plan
    itself writes into the stream: adding a direction there adds its part, a zero takes away all
    that had been written before it.
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
        plan: Plan,
    ) -> Scores:
        foreign = [str(site) for site in sites if site not in self.sites(model)]
        if foreign:
            wanted = "sites that add to the residual stream: " + ", ".join(WRITERS)
            raise OptionError("sites", wanted, foreign)
        _check_additive(model)
        seen = _read(model, contrast.clean, plan, sites)
        slope, value = _slope(model, metric, seen.stream)
        rows = _rows(model, seen, slope, constant=value - (seen.stream * slope).sum(-1))
        parts = torch.stack(list(rows.values()), 1)  # example component layer
        exact = _metric(model, metric, seen.stream)
        checks = (
            Check(
                "sum - metric",
                _worst(parts.sum((1, 2)) - exact),
                metric.unit,
                "0 if nothing is left out",
            ),
            Check("metric, clean", float(exact.mean()), metric.unit, "what the scores add up to"),
        )
        only = metric.vocabulary
        corrupt = run(model, contrast.corrupt, plan=plan, positions="answer", vocabulary=only)
        return Scores(*_along(parts, tuple(rows), axes), exact, metric(corrupt), checks)


def _check_additive(model: Model) -> None:
    """Refuses a model whose components do not add up to the stream that is unembedded.

    Raises:
        OptionError: If norms come after the components, or a head of several layers follows.
    """
    between = [s for s in model.sites if s.name.startswith(BETWEEN) or s.short == POST_NORM]
    if between:
        allowed = f"one whose components add up to its last stream; {between[-1]} is between"
        raise OptionError("model", allowed, model.name)


@final
class AtLast(Tap):
    """Keeps what each site holds at every row's last token, and nothing else."""

    def __init__(self, sites: Sites, batch: Batch) -> None:
        self._sites, self._columns = frozenset(sites), batch.answer
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


@final
@dataclass(frozen=True, eq=False)
class _Seen:
    """What one run under a plan wrote at every row's last token."""

    stream: Float[Tensor, "example d_model"]  # after the last block
    written: Mapping[Site, Tensor]  # as the plan left it
    before: Mapping[Site, Tensor]  # before the plan acted, at the sites that it edits openly

    @property
    def heads_of(self) -> frozenset[int | None]:
        """The layers whose heads were read one by one."""
        return frozenset(s.layer for s in self.written if s.short == "attn.hook_result")


def _read(model: Model, batch: Batch, plan: Plan, sites: Sites) -> _Seen:
    """One run under the plan.

    Raises:
        OptionError: If the plan acts after the last block, where parts no longer add up.
    """
    program = compile_plan(plan, model, len(batch.tokens))
    if program.by_site and program.last_block(model) == model.sizes.n_layers:
        late = "interventions at or before the last block: after it, parts do not add up"
        raise OptionError("plan", late, [str(one) for one in plan])
    edited = tuple(site for site in program.by_site if site.short in OPEN)
    ledger, before, after = Ledger(plan), AtLast(edited, batch), AtLast((*sites, *edited), batch)
    tap = chain(before, program.tap(batch, ledger), after)
    with forward_only():
        stream = model.layers(model.embed(batch, tap), batch, tap)
    program.finish(ledger, batch, "its scope selects no token")
    return _Seen(pick(stream, batch.answer[:, None])[:, 0], after.seen, before.seen)


def _metric(model: Model, metric: TokenMetric, stream: Tensor) -> Float[Tensor, " example"]:
    with forward_only():
        logits = model.unembed(stream[:, None], UNTAPPED, vocabulary=metric.vocabulary)[:, 0]
    return metric.read(logits, torch.arange(len(stream), device=stream.device))


def _slope(
    model: Model, metric: TokenMetric, stream: Float[Tensor, "example d_model"]
) -> tuple[Float[Tensor, "example d_model"], Float[Tensor, " example"]]:
    """The metric's gradient at the last stream with the norm's scale frozen, and its value."""
    with with_graph():
        leaf = stream.detach().requires_grad_()
        logits = model.unembed(leaf[:, None], FrozenScale(), vocabulary=metric.vocabulary)[:, 0]
        value = metric.read(logits, torch.arange(len(stream), device=stream.device))
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return slope, value.detach()


def _rows(
    model: Model, seen: _Seen, slope: Tensor, *, constant: Tensor
) -> dict[str, Float[Tensor, "example layer"]]:
    """Every component's contribution by layer; components a model lacks have a row of zeros."""
    sizes, split = model.sizes, seen.heads_of
    heads = [f"H{head}" for head in range(sizes.n_heads)]
    # Without its heads, what attention writes is not its bias alone.
    whole = any(s.short == "hook_attn_out" and s.layer not in split for s in seen.written)
    attn, planned = "attn" if whole else "attn_bias", ["plan"] if seen.before else []
    names = ("embed", *heads, attn, "mlp", *planned, "constant")
    rows = {name: slope.new_zeros(len(slope), sizes.n_layers) for name in names}
    for site, value in seen.written.items():
        if site in seen.before and (site.short in STREAMS or site.layer in split):
            rows["plan"][:, site.layer or 0] += ((value - seen.before[site]) * slope).sum(-1)
        if site.short in STREAMS:
            continue
        if site.short == "attn.hook_result":
            for head, share in zip(heads, torch.einsum("ehd,ed->he", value, slope), strict=True):
                rows[head][:, site.layer or 0] = share
        elif site.short == "hook_attn_out":  # heads come before it: what they leave is the bias
            own = seen.before.get(site, value) if site.layer in split else value
            of_heads = sum(rows[head][:, site.layer or 0] for head in heads)
            rows[attn][:, site.layer or 0] = (own * slope).sum(-1) - of_heads
        else:
            kind = "embed" if site.layer is None else "mlp"
            rows[kind][:, site.layer or 0] += (value * slope).sum(-1)
    rows["constant"][:, -1] = constant
    return rows


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
