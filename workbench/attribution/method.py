"""What an attribution method is: hyper-parameters as fields, data in the call, a frozen result.

The call validates once, so that a method's file holds little but its paper's equation.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from workbench.attribution.attribution import Attribution, Kind
from workbench.core.data import Contrast, TokenContrast
from workbench.core.errors import NonFiniteError, OptionError
from workbench.core.metrics import Metric, TokenMetric, logit_difference
from workbench.core.modes import outside_inference
from workbench.core.options import expect, texts
from workbench.core.plan import Interventions, Plan, as_plan
from workbench.core.protocols import Model
from workbench.core.provenance import hyper_parameters, provenance
from workbench.core.registry import discover
from workbench.core.result import Axis, Check
from workbench.core.sites import Selector, Sites, select


@final
@dataclass(frozen=True, eq=False)
class Scores:
    """What a method's equation gives, before it is wrapped with where it came from."""

    per_example: Float[Tensor, "example ..."]
    axes: tuple[Axis, ...]
    base: Float[Tensor, " example"]
    donor: Float[Tensor, " example"]
    checks: tuple[Check, ...]


class AttributionMethod(ABC):
    """One attribution method; its fields are its hyper-parameters."""

    source: ClassVar[str]
    kind: ClassVar[Kind]
    offered: ClassVar[tuple[str, ...]]  # the axes it can resolve, in their order
    usual: ClassVar[tuple[str, ...]] = ()  # those it does where none are asked for; (): all

    @abstractmethod
    def sites(self, model: Model) -> Sites:
        """The sites it scores where none are asked for."""

    @abstractmethod
    def scores(
        self,
        model: Model,
        contrast: TokenContrast,
        metric: TokenMetric,
        sites: Sites,
        axes: tuple[str, ...],
        plan: Plan,
    ) -> Scores:
        """The method's equation, in a model whose every run is under `plan`."""

    @outside_inference
    def __call__(
        self,
        model: Model,
        contrast: Contrast,
        metric: Metric | None = None,
        sites: Selector | None = None,
        *,
        axes: Sequence[str] | None = None,
        plan: Interventions = (),
    ) -> Attribution:
        """Scores over a contrast; the metric is the logit difference unless given.

        `plan` holds in every run: what is scored is the model as changed by it.

        Raises:
            AlignmentError: If clean and corrupt prompts do not match token by token.
            TokenError: If a target or foil is not one token.
            UnknownNameError: If the model lacks a site.
            OptionError: If the method cannot resolve one of `axes`.
            NonFiniteError: If a score is not finite.
        """
        wanted = self.sites(model) if sites is None else select(sites, model.sites)
        expect("contrast", contrast, Contrast, "a wb.Contrast")
        resolved = (self.usual or self.offered) if axes is None else texts("axes", axes)
        if not set(resolved) <= set(self.offered) or not resolved:
            raise OptionError("axes", f"some of {', '.join(self.offered)}", axes)
        resolved = tuple(axis for axis in self.offered if axis in resolved)
        metric = logit_difference(contrast) if metric is None else metric
        expect("metric", metric, Metric, "one of wb.metrics")
        tokens = contrast.on(model)
        held = as_plan(plan)
        found = self.scores(model, tokens, metric.on(model), wanted, resolved, held)
        bad = int((~found.per_example.isfinite()).sum())
        if bad:
            raise NonFiniteError(type(self).__name__, bad, found.per_example.numel())
        return Attribution(
            per_example=found.per_example,
            axes=found.axes,
            unit=metric.unit,
            kind=self.kind,
            metric=metric.name,
            base=found.base,
            donor=found.donor,
            checks=found.checks,
            provenance=provenance(
                model,
                method=type(self).__name__,
                source=self.source,
                data=[tokens.clean.tokens.tolist(), tokens.corrupt.tokens.tolist()],
                parameters={
                    **hyper_parameters(self),
                    "sites": list(map(str, wanted)),
                    "axes": resolved,
                    "plan": list(map(str, held)),
                },
            ),
        )


METHODS = discover("workbench.attribution.methods", "METHOD", AttributionMethod)
