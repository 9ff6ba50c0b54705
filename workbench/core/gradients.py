"""Derivatives at sites: gradients of a metric, and products of the Jacobian with vectors.

Notable: all of it is reverse mode, by `autograd.grad`. torch keeps the level of forward-mode
differentiation in the process, so that `torch.func.jvp` in two threads fails; a Jacobian-vector
product is the derivative of a vector-Jacobian product, which is linear in its vector. Parameters
take no part, so that nothing is ever added to their `grad`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.data import Batch, Prompt
from workbench.core.errors import EmptySelectionError
from workbench.core.guards import check_need, gradients_need
from workbench.core.leaves import Leaves, Unfused
from workbench.core.ledger import Ledger
from workbench.core.metrics import AnyMetric, TokenMetric, read_by
from workbench.core.modes import outside_inference, with_graph
from workbench.core.options import expect, flag
from workbench.core.plan import Interventions, as_plan
from workbench.core.program import block_of, compile_plan
from workbench.core.protocols import Model
from workbench.core.request import as_batch
from workbench.core.run import in_order, pick, unembed_at
from workbench.core.sites import Selector, Site, Sites, one_site, select
from workbench.core.tap import Recorder, Tap, chain
from workbench.core.vectors import (
    LOGITS,
    Name,
    Vectors,
    check_finite,
    check_order,
    directions_of,
    fitting,
    vectors_of,
)


@final
@dataclass(frozen=True, eq=False)
class Tangents:
    """How fast a run changes along a direction: at sites, in its logits and in a metric.

    With many directions each tensor has them as its first axis.
    """

    at: Mapping[Site, Tensor]
    logits: Float[Tensor, "*direction batch pos d_vocab"] | None
    metric: Float[Tensor, "*direction batch"] | None

    def __getitem__(self, site: str | Site) -> Tensor:
        return self.at[one_site(site, tuple(self.at))]


@outside_inference
def gradients(  # noqa: PLR0913 - what is differentiated, and of which run
    model: Model,
    prompt: Prompt | Batch,
    sites: Selector,
    metric: AnyMetric,
    *,
    plan: Interventions = (),
    attention_mask: Tensor | None = None,
    target: Prompt | None = None,
) -> dict[Site, Tensor]:
    """The gradient of the metric, summed over the batch, at each of `sites`.

    In the metric's unit per unit of activation, taken after the plan's changes at the site, and
    through everything that reads it. Rows do not mix, so each row holds the gradient of its own
    example. Costs one forward and one backward, by `autograd.grad`: `backward` would add up all
    threads' gradients in shared parameters. `attention_mask` and `target` are those of `run`: what
    a mask hides has a gradient of 0.

    Raises:
        UnknownNameError: If the model lacks one of `sites`.
        ShapeError: If the prompts are not the metric's examples, or a mask does not fit them.
        OptionError: If a mask is given for a Batch, or is no mask.
        NonFiniteError: If the metric or a gradient is not finite.
        MemoryLimitError: If the graph would not fit; says what would take less.
    """
    batch = as_batch(model, prompt, "right", attention_mask, target)
    wanted, reader = select(sites, model.sites), read_by(metric, model, len(batch.tokens))
    with with_graph():
        graph = _graph(model, batch, plan, wanted, _Ends(reader=reader))
        slopes = _pull([graph.values], [torch.ones_like(graph.values)], graph.inputs)
    found = dict(zip(wanted, slopes, strict=True))
    check_finite({reader.name: graph.values, **found})
    return found


@outside_inference
def vjp(  # noqa: PLR0913 - where cotangents go in, and where they come out
    model: Model,
    prompt: Prompt | Batch,
    sites: Selector,
    cotangents: Vectors | None = None,
    *,
    logits: Tensor | None = None,
    plan: Interventions = (),
    attention_mask: Tensor | None = None,
    target: Prompt | None = None,
    batched: bool = False,
) -> dict[Site, Tensor]:
    """Vector-Jacobian products: cotangents at later sites, pulled back to `sites`.

    What comes back is the gradient, at each of `sites`, of Σ cotangent · activation over all that
    is given: `cotangents` by site, `logits` for all logits. With `batched` each has an axis of
    many cotangents before its own, and so has every result. Costs one forward as far as the last
    cotangent, and one backward per cotangent. `attention_mask` and `target` are those of `run`.

    Raises:
        UnknownNameError: If the model lacks one of the sites.
        EmptySelectionError: If no cotangent is given.
        OptionError: If none of `sites` comes before a cotangent, or a site comes after them all.
        ShapeError: If a cotangent has not the shape of its activation.
        NonFiniteError: If a cotangent or a result is not finite.
        MemoryLimitError: If the graph would not fit; says what would take less.
    """
    batch = as_batch(model, prompt, "right", attention_mask, target)
    many, wanted = flag("batched", batched), select(sites, model.sites)
    given = vectors_of("cotangents", cotangents or {}, model)
    at = tuple(site for site in model.sites if site in given)
    if logits is not None:
        given[LOGITS] = expect("logits", logits, Tensor, "a tensor")
    if not given:
        raise EmptySelectionError("No cotangent is given; name a site, or pass logits=…")
    check_order(wanted, tuple(given), model)
    with with_graph():
        ends = _Ends(at, logits=logits is not None)
        graph = _graph(model, batch, plan, wanted, ends, directions=directions_of(given, many=many))
        vectors = fitting(given, graph.outputs, many=many)
        pulled = _pull(list(graph.outputs.values()), vectors, graph.inputs, many=many)
    found = dict(zip(wanted, pulled, strict=True))
    check_finite({**found})
    return found


@outside_inference
def jvp(  # noqa: PLR0913 - where tangents go in, and all the places where they come out
    model: Model,
    prompt: Prompt | Batch,
    tangents: Vectors,
    record: Selector = (),
    *,
    logits: bool = False,
    metric: AnyMetric | None = None,
    plan: Interventions = (),
    attention_mask: Tensor | None = None,
    target: Prompt | None = None,
    batched: bool = False,
) -> Tangents:
    """Jacobian-vector products: how the run changes when tangents are added at sites.

    Exactly d/dε at ε = 0 of the run with ε · tangent added at each of their sites, after the
    plan's changes there: at the sites in `record` (their own tangent included), in all `logits`,
    in the `metric` of each example. With `batched` each tangent has an axis of many directions
    before its own, and so has every result. Attention runs on the plain kernel: the fused one has
    no second derivative. Costs one forward, one backward and, for each direction, one more of
    both; a metric alone costs one forward and one backward for all directions together.
    `attention_mask` and `target` are those of `run`.

    Raises:
        UnknownNameError: If the model lacks one of the sites.
        EmptySelectionError: If there is no tangent, or nothing to read it from.
        OptionError: If a tangent's site comes after all that is read.
        ShapeError: If a tangent has not the shape of its activation.
        NonFiniteError: If a tangent or a result is not finite.
        MemoryLimitError: If the graph would not fit; says what would take less.
    """
    batch = as_batch(model, prompt, "right", attention_mask, target)
    many, given = flag("batched", batched), vectors_of("tangents", tangents, model)
    reader = None if metric is None else read_by(metric, model, len(batch.tokens))
    nothing = isinstance(record, Sequence) and not len(record)
    read = () if nothing else select(record, model.sites)
    ends = _Ends(read, flag("logits", logits), reader)
    if not given or not ends.names:
        raise EmptySelectionError("jvp needs a tangent, and a site, logits or a metric to read.")
    check_order(tuple(given), ends.names, model)
    inputs, further = tuple(s for s in model.sites if s in given), bool(read or logits)
    with with_graph():
        each = directions_of(given, many=many)
        graph = _graph(model, batch, plan, inputs, ends, twice=further, directions=each)
        vectors = fitting(given, dict(zip(inputs, graph.inputs, strict=True)), many=many)
        moved = _moved(graph, vectors, many=many, again=further) if reader else None
        pushed = _push(graph, vectors, many=many) if further else {}
    check_finite({**pushed, "the metric": moved} if moved is not None else pushed)
    at = {site: pushed[site] for site in read}
    return Tangents(MappingProxyType(at), pushed.get(LOGITS), moved)


@final
@dataclass(frozen=True, eq=False)
class _Ends:
    """What is differentiated: activations, all logits, a metric."""

    sites: Sites = ()
    logits: bool = False
    reader: TokenMetric | None = None

    @property
    def names(self) -> tuple[Name, ...]:
        """All of them, in forward order."""
        return (*self.sites, LOGITS) if self.logits or self.reader else self.sites


@final
@dataclass(frozen=True, eq=False)
class _Graph:
    """A forward whose graph is kept: where derivatives are asked for, and of what."""

    inputs: list[Tensor]
    outputs: Mapping[Name, Tensor]
    values: Tensor  # of the metric; empty without one


def _graph(  # noqa: PLR0913 - what is differentiated, and how often
    model: Model,
    batch: Batch,
    plan: Interventions,
    inputs: Sites,
    ends: _Ends,
    *,
    twice: bool = False,
    directions: int = 1,
) -> _Graph:
    """A forward as far as its ends need, once it is known to fit."""
    program = compile_plan(as_plan(plan), model, len(batch.tokens))
    words = model.sizes.d_vocab if ends.logits else 0
    need = gradients_need(
        *(model, batch, program, inputs, ends.sites),
        last=_last(model, ends),
        words=words,
        directions=directions,
        twice=twice,
    )
    check_need(need, model)
    ledger, leaves, recorder = Ledger(program.plan), Leaves(inputs), Recorder(ends.sites)
    plain = (Unfused(),) if twice else ()
    tap = chain(program.tap(batch, ledger), leaves, recorder, *plain)
    last = _last(model, ends)
    resid = model.layers(model.embed(batch, tap), batch, tap, last=last)
    logits, values = (None, resid[:0, 0, 0]) if last else _read(model, batch, resid, tap, ends)
    ended = "its scope selects no token" if last is None else f"the run ended before block {last}"
    nodes = list(leaves.found().values())
    program.finish(ledger, batch, ended)
    outputs: dict[Name, Tensor] = {**in_order(recorder.recorded(), ends.sites)}
    return _Graph(nodes, outputs if logits is None else {**outputs, LOGITS: logits}, values)


def _last(model: Model, ends: _Ends) -> int | None:
    """How many blocks must run; None for all of them and the logits."""
    blocks = [block_of(site, model) for site in ends.sites]
    if ends.logits or ends.reader is not None or max(blocks) == model.sizes.n_layers:
        return None
    return max(blocks) + 1


def _read(
    model: Model, batch: Batch, resid: Tensor, tap: Tap, ends: _Ends
) -> tuple[Tensor | None, Tensor]:
    """All logits, where they are asked for, and the metric of each row."""
    reader, rows = ends.reader, torch.arange(len(resid), device=resid.device)
    if ends.logits or reader is None:
        logits = model.unembed(resid, tap)
        if reader is None:
            return logits if ends.logits else None, resid[:0, 0, 0]
        words = slice(None) if reader.vocabulary is None else reader.vocabulary
        return logits, reader.read(pick(logits, batch.answer[:, None])[:, 0, words], rows)
    answers = unembed_at(model, resid, tap, batch.answer[:, None], reader.vocabulary)[:, 0]
    return None, reader.read(answers, rows)


def _pull(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    nodes: Sequence[Tensor],
    *,
    many: bool = False,
    again: bool = False,
) -> list[Tensor]:
    """The gradients of Σ cotangent · output; zero where a plan replaced all that depends on it."""
    live = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not live:
        shape = cotangents[0].shape[:1] if many else ()
        return [node.new_zeros(*shape, *node.shape) for node in nodes]
    found = torch.autograd.grad(
        [outputs[i] for i in live],
        nodes,
        [cotangents[i] for i in live],
        allow_unused=True,
        materialize_grads=True,
        create_graph=again,
        is_grads_batched=many,
    )
    return list(found)


def _push(graph: _Graph, tangents: Sequence[Tensor], *, many: bool) -> dict[Name, Tensor]:
    """What is pulled back is linear in the cotangents; its derivative by them is what is pushed."""
    outputs = list(graph.outputs.values())
    cotangents = [torch.zeros_like(output).requires_grad_() for output in outputs]
    pulled = _pull(outputs, cotangents, graph.inputs, again=True)
    pushed = _pull(pulled, tangents, cotangents, many=many)
    return dict(zip(graph.outputs, pushed, strict=True))


def _moved(graph: _Graph, tangents: Sequence[Tensor], *, many: bool, again: bool) -> Tensor:
    """The metric's change along each direction: rows do not mix, so one backward serves all."""
    slopes = _pull([graph.values], [torch.ones_like(graph.values)], graph.inputs, again=again)
    parts = (
        (slope.detach() * tangent).flatten(2 if many else 1).sum(-1)
        for slope, tangent in zip(slopes, tangents, strict=True)
    )
    return torch.stack(list(parts)).sum(0)
