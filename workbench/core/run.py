"""Running a model: one forward with changes and recordings.

Notable: everything a run needs is made here and dropped at its end; the model is only called.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import Resid
from workbench.core.data import Batch, PaddingSide, Prompt, batch_of
from workbench.core.errors import (
    EmptySelectionError,
    NonFiniteError,
    NotRecordedError,
    OptionError,
)
from workbench.core.modes import forward_only, outside_inference
from workbench.core.operators import pure
from workbench.core.options import expect, flag, indices
from workbench.core.plan import Interventions, as_plan
from workbench.core.program import Ledger, compile_plan
from workbench.core.protocols import Model
from workbench.core.sites import Selector, Site, Sites, select
from workbench.core.tap import UNTAPPED, Recorder, Tap, chain
from workbench.core.trace import Trace

Check = Callable[[], None]
Columns = Literal["last"] | int | Sequence[int] | None


@outside_inference
def run(  # noqa: PLR0913 - the arguments of a forward
    model: Model,
    prompt: Prompt | Batch,
    *,
    plan: Interventions = (),
    record: Selector = (),
    positions: Columns = None,
    vocabulary: Sequence[int] | Int[Tensor, " column"] | None = None,
    logits: bool = True,
    padding_side: PaddingSide = "right",
    tap: Tap = UNTAPPED,
    check: Check | None = None,
) -> Trace:
    """One forward pass under a plan; what it left.

    Costs one forward of as many blocks as are needed: all of them for logits, with `logits=False`
    those up to the last recorded one. `positions` ("last", or content positions, negative ones
    from each row's end) and `vocabulary` restrict what is unembedded. `tap` is any tap of
    your own, called after the plan and before recording; it must not write into what it is given.
    `check` is called at every site and may raise to cancel.

    Raises:
        PromptError: If a prompt is empty, too long, or has unknown ids.
        UnknownNameError: If a recorded site or one of the plan is not the model's.
        NeverActedError: If an intervention changed nothing because it was never reached.
        InPlaceEditError: If a bare function or `tap` wrote into an activation.
        NonFiniteError: If the stream stops being finite; names the first site where it does.
        EmptySelectionError: If nothing is asked for.
    """
    batch = (
        prompt if isinstance(prompt, Batch) else batch_of(model, prompt, padding_side=padding_side)
    )
    wanted = _recorded(record, model)
    expect("tap", tap, Tap, "a tap: wants(site), and a call with a site and its activation")
    if not flag("logits", logits) and not wanted:
        raise EmptySelectionError("Nothing is asked for: record a site or leave out logits=False.")
    program = compile_plan(as_plan(plan), model, len(batch.tokens))
    ledger, recorder = Ledger(program.plan), Recorder(wanted)
    own = tap if tap is UNTAPPED else Guarded(tap)
    whole = chain(*_checks(check), program.tap(batch.place, ledger), own, recorder)
    watched = chain(program.tap(batch.place, Ledger(program.plan)), own, FiniteWatch())
    columns, columns_of_vocabulary = _columns(positions, batch), _vocabulary(vocabulary, model)
    tapped_late = any(whole.wants(site) for site in _late(model))
    stop = None if logits or tapped_late else _stop(wanted)
    unembedded = None
    with forward_only():
        resid = model.layers(model.embed(batch, whole), batch, whole, last=stop)
        if bad := not_finite(resid):
            model.layers(model.embed(batch, watched), batch, watched)
            raise NonFiniteError("the final residual stream", bad, resid.numel())
        if stop is None:
            unembedded = unembed_at(model, resid, whole, columns, columns_of_vocabulary)
        if (
            unembedded is not None
            and _may_overflow(model, whole)
            and (bad := not_finite(unembedded))
        ):
            model.unembed(resid, watched)
            raise NonFiniteError("the logits", bad, unembedded.numel())
    return Trace(
        model=model,
        batch=batch,
        plan=program.plan,
        receipts=program.finish(ledger, batch.prompt.tolist(), _ended(stop)),
        activations=MappingProxyType(in_order(recorder.recorded(), wanted)),
        unembedded=unembedded if logits else None,
        columns=columns,
        vocabulary=columns_of_vocabulary,
    )


@final
class Checked(Tap):
    """Calls `check` at every site, which may raise to cancel."""

    def __init__(self, check: Check) -> None:
        self._check = check

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        self._check()
        return value

    @override
    def wants(self, site: Site) -> bool:
        return False


@final
class Guarded(Tap):
    """A tap of the caller's own, held to its promise: a new tensor like the one it was given.

    It is given a copy, so that not even a write which torch does not count reaches the run.
    """

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return pure(partial(self._tap, site), value.clone(), site)

    @override
    def wants(self, site: Site) -> bool:
        return self._tap.wants(site)


@final
class FiniteWatch(Tap):
    """Raises at the first site whose activation is not finite."""

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        bad = int((~torch.isfinite(value)).sum())
        if bad and site.short != "attn.hook_attn_scores":  # masked scores are -inf
            raise NonFiniteError(site, bad, value.numel())
        return value

    @override
    def wants(self, site: Site) -> bool:
        return False


def unembed_at(
    model: Model,
    resid: Resid,
    tap: Tap,
    columns: Int[Tensor, "batch column"] | None,
    vocabulary: Tensor | None = None,
) -> Float[Tensor, "batch column word"]:
    """Logits at some columns of the stream after the blocks; at all of them for None.

    Nothing else is unembedded, unless the tap wants a site there: sites have all positions,
    whatever is asked of the logits.
    """
    if any(tap.wants(site) for site in _late(model)):
        return pick(model.unembed(resid, tap, vocabulary=vocabulary), columns)
    return model.unembed(pick(resid, columns), tap, vocabulary=vocabulary)


def pick(
    resid: Float[Tensor, "batch pos width"], columns: Int[Tensor, "batch column"] | None
) -> Float[Tensor, "batch column width"]:
    """The values at some columns of each row; all of them for None."""
    if columns is None:
        return resid
    return resid.gather(1, columns[:, :, None].expand(-1, -1, resid.shape[-1]))


def _recorded(record: Selector, model: Model) -> Sites:
    nothing = isinstance(record, Sequence) and not len(record)
    return () if nothing else select(record, model.sites)


def _columns(positions: Columns, batch: Batch) -> Int[Tensor, "batch column"] | None:
    if positions is None:
        return None
    if positions == "last":
        return batch.last[:, None]
    if isinstance(positions, str):
        raise OptionError("positions", "'last', an index or indices", positions)
    asked = torch.tensor(indices("positions", positions))
    lengths = batch.lengths[:, None]
    absolute = torch.where(asked < 0, lengths + asked, asked.expand(len(lengths), -1))
    if bool(((absolute < 0) | (absolute >= lengths)).any()):
        raise OptionError("positions", f"below {int(lengths.min())}", asked.tolist())
    first = batch.last[:, None] + 1 - lengths  # where the content of a row begins
    return first + absolute


def _vocabulary(vocabulary: Sequence[int] | Tensor | None, model: Model) -> Tensor | None:
    if vocabulary is None:
        return None
    ids = indices("vocabulary", vocabulary)
    if min(ids) < 0 or max(ids) >= model.sizes.d_vocab:
        raise OptionError("vocabulary", f"token ids in 0…{model.sizes.d_vocab - 1}", list(ids))
    return torch.tensor(ids, device=model.device)


def _may_overflow(model: Model, tap: Tap) -> bool:
    """Whether logits of a finite stream may not be finite: in half precision, or if tapped."""
    half = model.dtype in (torch.float16, torch.bfloat16)
    return half or any(tap.wants(site) for site in _late(model))


def _late(model: Model) -> Sites:
    """The sites after the blocks."""
    blocks = [i for i, site in enumerate(model.sites) if site.layer is not None]
    return model.sites[max(blocks, default=0) + 1 :]


def _stop(sites: Sites) -> int:
    """How many blocks must run for these sites, none of which comes after the blocks."""
    return max((site.layer for site in sites if site.layer is not None), default=-1) + 1


def _ended(stop: int | None) -> str:
    return "its scope selects no token" if stop is None else f"the run ended before block {stop}"


def _checks(check: Check | None) -> tuple[Tap, ...]:
    return () if check is None else (Checked(check),)


def in_order(seen: Mapping[Site, Tensor], wanted: Sites) -> dict[Site, Tensor]:
    """What was seen, in the order of the sites asked for.

    Raises:
        NotRecordedError: If the run never passed one.
    """
    missing = [str(site) for site in wanted if site not in seen]
    if missing:
        raise NotRecordedError(f"The run never passed {', '.join(missing)}.")
    return {site: seen[site] for site in wanted}


def not_finite(value: Tensor) -> int:
    """How many values are NaN or infinite; one pass over the tensor where none is."""
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    if bool(torch.isfinite(value.sum(dtype=wide))):
        return 0
    return int((~torch.isfinite(value)).sum())  # may be 0: a sum of finite numbers may overflow
