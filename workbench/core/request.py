"""What a run was asked for: its arguments read once, and checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.core.asked import content_columns
from workbench.core.axes import Resid
from workbench.core.data import Batch, PaddingSide, Prompt, batch_of
from workbench.core.errors import EmptySelectionError, NotRecordedError, OptionError, ShapeError
from workbench.core.options import count, expect, flag, indices
from workbench.core.program import Program, block_of
from workbench.core.protocols import Model
from workbench.core.replay import can_replay
from workbench.core.sites import Selector, Site, Sites, select

Columns = Literal["last", "answer"] | int | Sequence[int] | None
Start = tuple[int, Tensor] | None
ALL = "all"


@final
@dataclass(frozen=True, eq=False)
class Request:
    """The parts of one forward that are needed, and what is to be kept of it."""

    model: Model
    batch: Batch
    program: Program
    sites: Sites  # to be found in the trace, in forward order
    lazy: bool  # keeps the stream before each block; other sites are replayed
    first: int  # the first block that runs, ...
    given: Resid | None  # ... and the stream before it; None: the embedding's
    stop: int | None  # the block before which the run ends; None: with the unembedding
    columns: Int[Tensor, "batch column"] | None
    vocabulary: Int[Tensor, " word"] | None
    logits: bool

    @property
    def open(self) -> frozenset[Site]:
        """The sites that the run itself must make: recorded as it goes, or changed by the plan."""
        return frozenset(() if self.lazy else self.sites) | frozenset(self.program.by_site)

    @property
    def ended(self) -> str:
        """Why an intervention may not have acted."""
        if self.stop is not None:
            return f"the run ended before block {self.stop}"
        begun = "" if self.given is None else f"the run started before block {self.first}, or "
        return f"{begun}its scope selects no token"


def request_of(  # noqa: PLR0913 - the arguments of a forward
    model: Model,
    batch: Batch,
    program: Program,
    *,
    record: Selector = (),
    positions: Columns = None,
    vocabulary: Sequence[int] | Tensor | None = None,
    logits: bool = True,
    start: Start = None,
    own: bool = False,
    late: bool = False,
) -> Request:
    """Reads the arguments of a run.

    `own` says that there is a tap of the caller's, whose run cannot be replayed, and `late` that
    it wants a site after the blocks.

    Raises:
        UnknownNameError: If a recorded site is not the model's.
        NotRecordedError: If one comes before the start.
        ShapeError: If the given stream is not one of this batch.
        OptionError: If a layer, position or token id is outside what it may be.
        EmptySelectionError: If nothing is asked for.
    """
    first, given = _start(start, model, batch)
    sites = _recorded(record, model, first, given)
    lazy = record == ALL and not own and can_replay(model, program.plan)
    if not flag("logits", logits) and not sites:
        raise EmptySelectionError("Nothing is asked for: record a site or leave out logits=False.")
    tapped = {*sites, *program.by_site} if not lazy else set(program.by_site)
    unembeds = logits or late or any(site in tapped for site in late_sites(model))
    end = model.sizes.n_layers if lazy else max(_end(sites, model), first)
    return Request(
        model=model,
        batch=batch,
        program=program,
        sites=sites,
        lazy=lazy,
        first=first,
        given=given,
        stop=None if unembeds else end,
        columns=_columns(positions, batch),
        vocabulary=_vocabulary(vocabulary, model),
        logits=logits,
    )


def as_batch(
    model: Model,
    prompt: Prompt | Batch,
    side: PaddingSide,
    mask: Tensor | None,
    target: Prompt | None = None,
) -> Batch:
    """The prompt as one batch; a batch knows its pads and its target already.

    Raises:
        PromptError: If a prompt cannot be run.
        OptionError: If a mask or a target is given for a batch, or is none.
    """
    if not isinstance(prompt, Batch):
        return batch_of(model, prompt, padding_side=side, attention_mask=mask, target=target)
    if target is not None:
        raise OptionError("target", "left out: a Batch has its own tokens", target)
    if (prompt.source is None) != (not model.sizes.reads_source):
        made = "made for this model: one of two stacks or streams has a source, others have none"
        raise OptionError("prompt", made, "a Batch of another")
    if mask is not None:
        raise OptionError("attention_mask", "left out: a Batch has its own, `real`", mask)
    return prompt


def late_sites(model: Model) -> Sites:
    """The sites after the blocks."""
    blocks = [i for i, site in enumerate(model.sites) if site.layer is not None]
    return model.sites[max(blocks, default=0) + 1 :]


def _start(start: Start, model: Model, batch: Batch) -> tuple[int, Resid | None]:
    if start is None:
        return 0, None
    match expect("start", start, tuple, "a block and the stream before it: (layer, resid)"):
        case (layer, Tensor() as resid):
            pass
        case _:
            raise OptionError("start", "a block and the stream before it: (layer, resid)", start)
    layer = count("start[0]", layer, least=0)
    if layer > model.sizes.n_layers:
        raise OptionError("start[0]", f"a block in 0…{model.sizes.n_layers}", layer)
    columns = batch.tokens.shape[1] if layer == model.sizes.n_layers else batch.width
    expected = (len(batch.tokens), columns, model.sizes.d_model)
    like = (expected, model.dtype, model.device)
    if (tuple(resid.shape), resid.dtype, resid.device) != like:
        wanted = f"{expected} (batch pos d_model), {model.dtype}, {model.device}"
        got = f"{tuple(resid.shape)}, {resid.dtype}, {resid.device}"
        raise ShapeError("start[1], the residual stream", wanted, got)
    return layer, resid.detach()


def _recorded(record: Selector, model: Model, first: int, given: Resid | None) -> Sites:
    if isinstance(record, Sequence) and not len(record):
        return ()
    known = model.sites
    if given is not None:
        known = tuple(site for site in known if block_of(site, model) >= first)
    if record == ALL:
        return known
    sites = select(record, model.sites)
    if early := [str(site) for site in sites if site not in set(known)]:
        raise NotRecordedError(f"The run starts before block {first}, after {', '.join(early)}.")
    return sites


def _end(sites: Sites, model: Model) -> int:
    """How many blocks must run for these sites, none of which comes after the blocks."""
    return max((block_of(site, model) for site in sites), default=-1) + 1


def _columns(positions: Columns, batch: Batch) -> Int[Tensor, "batch column"] | None:
    if positions is None:
        return None
    if positions == "last":
        return batch.last[:, None]
    if positions == "answer":
        return batch.answer[:, None]
    if isinstance(positions, str):
        raise OptionError("positions", "'last', 'answer', an index or indices", positions)
    asked = torch.tensor(indices("positions", positions), device=batch.tokens.device)
    return content_columns(batch, asked.expand(len(batch.tokens), -1))


def _vocabulary(vocabulary: Sequence[int] | Tensor | None, model: Model) -> Tensor | None:
    if vocabulary is None:
        return None
    ids = indices("vocabulary", vocabulary)
    if min(ids) < 0 or max(ids) >= model.sizes.d_out:
        what = "token ids" if model.sizes.output.columns == "vocabulary" else "columns"
        raise OptionError("vocabulary", f"{what} in 0…{model.sizes.d_out - 1}", list(ids))
    return torch.tensor(ids, device=model.device)
