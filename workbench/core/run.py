"""Running a model: one forward with changes and recordings.

Notable: everything a run needs is made here and dropped at its end; the model is only called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import MEMORY, SCORES, Memory, OfStack, Resid
from workbench.core.buckets import Part, buckets_of
from workbench.core.data import Batch, PaddingSide, Prompt
from workbench.core.errors import (
    NonFiniteError,
    NotRecordedError,
    OptionError,
)
from workbench.core.estimate import check_fits, estimate_of
from workbench.core.gathered import LOGITS, Gathered, put
from workbench.core.ledger import Ledger
from workbench.core.modes import forward_only, outside_inference
from workbench.core.operands import pure
from workbench.core.options import expect
from workbench.core.plan import Interventions, as_plan
from workbench.core.program import compile_plan
from workbench.core.protocols import Model
from workbench.core.replay import Left, Replay, Streams
from workbench.core.request import Columns, Request, Start, as_batch, late_sites, request_of
from workbench.core.sites import Selector, Site, Sites
from workbench.core.spill import Spill
from workbench.core.tap import UNTAPPED, Keep, Recorder, Tap, as_it_is, chain
from workbench.core.trace import Trace

Check = Callable[[], None]
NOWHERE = "its scope selects no token"


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
    attention_mask: Tensor | None = None,
    target: Prompt | None = None,
    max_tokens: int | None = None,
    start: Start = None,
    spill: str | Path | None = None,
    tap: Tap = UNTAPPED,
    check: Check | None = None,
) -> Trace:
    """One forward pass under a plan; what it left.

    Costs one forward of as many blocks as are needed: all of them for logits, with `logits=False`
    those up to the last recorded one. `positions` ("last", or content positions, negative ones
    from each row's end) and `vocabulary` restrict what is unembedded. `attention_mask` (batch pos)
    has 1 at tokens and 0 at pads, wherever these stand; one by query and key (batch|1 head|1 query
    key) is True, or an additive 0, where a query may see a key, of those that it could see. A model
    with an encoder reads the prompt there, and `target` is what its decoder was given, the logits'
    text (see `batch_of`); positions count within the stack of a site.

    `record="all"` offers every site and keeps the stream before each block: reading another site
    replays one block under the same plan (see `Trace.read`). Where that might give another answer,
    with a bare function in the plan or a `tap`, every site is recorded as the run goes, as every
    other selection is, `"*"` too.

    With `max_tokens` rows of similar length run together, in batches of at most so many tokens with
    their pads: less work and memory where lengths differ. The trace is that of one batch, within
    rounding, and 0 at pads. A bare function or `tap` may look at all rows, and is refused.

    `start` is a block and the stream before it, as the block takes it, before the plan: nothing
    earlier runs. `spill` names an empty folder in whose files recorded tensors are kept, mapped;
    `load_trace` opens it again.
    `tap` is any tap of your own, called after the plan and before recording; it must not write
    into what it is given. `check` is called at every site and may raise to cancel.

    Raises:
        PromptError: If a prompt is empty, too long, or has unknown ids.
        UnknownNameError: If a recorded site or one of the plan is not the model's.
        NeverActedError: If an intervention changed nothing because it was never reached.
        InPlaceEditError: If a bare function or `tap` wrote into an activation.
        NonFiniteError: If the stream stops being finite; names the first site where it does.
        EmptySelectionError: If nothing is asked for.
        OptionError: If an argument is outside what it may be, or goes with no `max_tokens`.
        MemoryLimitError: If the run would not fit (see `estimate`); says what would.
        StorageError: If `spill` cannot be written to.
    """
    batch = as_batch(model, prompt, padding_side, attention_mask, target)
    expect("tap", tap, Tap, "a tap: wants(site), and a call with a site and its activation")
    beside = batch.source is not None or batch.memory or batch.backward is not None
    if spill is not None and beside:
        raise OptionError("spill", "left out: a file holds the batch of one stack", str(spill))
    program = compile_plan(as_plan(plan), model, len(batch.tokens))
    asked = request_of(
        model,
        batch,
        program,
        record=record,
        positions=positions,
        vocabulary=vocabulary,
        logits=logits,
        start=start,
        own=tap is not UNTAPPED,
        late=any(tap.wants(site) for site in late_sites(model)),
    )
    own = None if tap is UNTAPPED else Guarded(tap)
    parts = () if max_tokens is None else buckets_of(asked, max_tokens, own=own is not None)
    check_fits(estimate_of(asked, parts, spilled=spill is not None))
    ledger, spilled = Ledger(program.plan), None if spill is None else Spill(spill)
    watched = _Watched(own or UNTAPPED, check)
    if parts:
        left = _in_parts(asked, parts, ledger, watched, spilled)
    else:
        left = _leave(asked, ledger, watched, spilled or as_it_is)
    receipts = program.finish(ledger, batch, asked.ended)
    if spilled is not None:
        spilled.finish(asked, parts)
    return Trace(
        model=model,
        batch=batch,
        plan=program.plan,
        receipts=receipts,
        activations=left.activations,
        unembedded=left.unembedded if logits else None,
        columns=asked.columns,
        vocabulary=asked.vocabulary,
        replay=left.replay,
    )


@final
@dataclass(frozen=True, eq=False)
class _Watched:
    """What of the caller's own comes with a run: a tap, and a check that may raise."""

    tap: Tap
    check: Check | None


def _leave(asked: Request, ledger: Ledger, watched: _Watched, keep: Keep) -> Left:
    """One forward, and what it left."""
    streams = Streams(asked.first, keep)
    recorder = Recorder(_memory(asked) if asked.lazy else asked.sites, keep)
    kept = (streams,) if asked.lazy else ()
    acting = chain(asked.program.tap(asked.batch, ledger), watched.tap)
    tap = chain(*_checks(watched.check), *kept, acting, recorder)
    resid, unembedded = _forward(asked, tap, watched.tap)
    if asked.lazy:
        replay = _replay(
            asked,
            streams.with_last(resid, asked.model.sizes.n_layers),
            next(iter(recorder.recorded().values()), None),
        )
        return Left(MappingProxyType(dict(replay.kept())), replay, unembedded)
    seen = in_order(recorder.recorded(), asked.sites)
    return Left(MappingProxyType(seen), None, unembedded)


def _in_parts(
    asked: Request, parts: Sequence[Part], ledger: Ledger, watched: _Watched, spill: Spill | None
) -> Left:
    """A forward for each part of a run, and what they left together."""
    lefts: list[Left] = []
    whole: Tensor | None = None
    for number, part in enumerate(parts):
        own = Ledger(part.asked.program.plan)
        left = _leave(part.asked, own, watched, as_it_is if spill is None else spill.part(number))
        ledger.add(own, part.indices)
        if asked.logits and left.unembedded is not None:
            whole = _gather(asked, part, left.unembedded, whole)
        lefts.append(Left(left.activations, left.replay, None))
        del left  # or its logits would be there while the next part runs
    buckets = tuple(part.bucket for part in parts)
    gathered = Gathered(asked.sites, asked.batch, buckets, tuple(lefts))
    return Left(MappingProxyType({}), gathered, whole)


def _gather(asked: Request, part: Part, logits: Tensor, whole: Tensor | None) -> Tensor:
    """The logits of all rows, with those of a part put in."""
    if whole is None:
        rows, width = asked.batch.tokens.shape
        columns = width if asked.columns is None else asked.columns.shape[1]
        whole = logits.new_zeros(rows, columns, logits.shape[-1])
    put(whole, logits, part.bucket, LOGITS if asked.columns is None else ("batch", "column"))
    return whole


def _forward(asked: Request, tap: Tap, own: Tap) -> tuple[Resid, Tensor | None]:
    """The last stream of the blocks that ran, and what was unembedded of it.

    Raises:
        NonFiniteError: If either is not finite; names the first site where it is not.
    """
    model, batch = asked.model, asked.batch
    watched = chain(asked.program.tap(batch, Ledger(asked.program.plan)), own, FiniteWatch())
    with forward_only():
        resid = _through(asked, tap)
        if bad := not_finite(resid):
            _through(asked, watched)
            raise NonFiniteError("the final residual stream", bad, resid.numel())
        if asked.stop is not None:
            return resid, None
        unembedded = unembed_at(model, resid, tap, asked.columns, asked.vocabulary)
        if _may_overflow(model, tap) and (bad := not_finite(unembedded)):
            model.unembed(resid, watched)
            raise NonFiniteError("the logits", bad, unembedded.numel())
    return resid, unembedded


def _through(asked: Request, tap: Tap) -> Resid:
    """The stream after the blocks that are needed."""
    model, batch = asked.model, asked.batch
    resid = model.embed(batch, tap) if asked.given is None else asked.given
    return model.layers(resid, batch, tap, first=asked.first, last=asked.stop)


def _memory(asked: Request) -> Sites:
    """What of an encoder is kept beside the streams; nothing of a model without one."""
    return tuple(site for site in asked.model.sites if site.name == MEMORY)


def _replay(asked: Request, streams: tuple[OfStack, ...], memory: Memory | None) -> Replay:
    if asked.given is not None and asked.first < asked.model.sizes.n_layers:
        ahead = asked.batch.ahead  # started in the decoder, a stream has its memory
        memory = asked.given[:, :ahead] if memory is None and ahead else memory
    told = asked.model, asked.batch, asked.program, asked.sites, asked.first, streams
    return Replay(*told, memory)


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
        if bad and site.short not in SCORES:  # masked scores are -inf
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
    if any(tap.wants(site) for site in late_sites(model)):
        return pick(model.unembed(resid, tap, vocabulary=vocabulary), columns)
    return model.unembed(pick(resid, columns), tap, vocabulary=vocabulary)


def pick(
    resid: Float[Tensor, "batch pos width"], columns: Int[Tensor, "batch column"] | None
) -> Float[Tensor, "batch column width"]:
    """The values at some columns of each row; all of them for None."""
    if columns is None:
        return resid
    return resid.gather(1, columns[:, :, None].expand(-1, -1, resid.shape[-1]))


def _may_overflow(model: Model, tap: Tap) -> bool:
    """Whether logits of a finite stream may not be finite: in half precision, or if tapped."""
    half = model.dtype in (torch.float16, torch.bfloat16)
    return half or any(tap.wants(site) for site in late_sites(model))


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
