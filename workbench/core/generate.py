"""Generation as a pure function: cache, sampler, seeds, stop rules and plan are its arguments.

Notable: positions are absolute, so an intervention means the same in the prompt, in a decode step
and in one full forward over the finished text; a row never depends on its neighbours.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import GEN_RUNNING, getgeneratorstate
from types import MappingProxyType
from typing import Literal, final, overload

import torch
from typing_extensions import override

from workbench.core.data import Batch, Prompt, batch_of, padded
from workbench.core.errors import NotRecordedError, OptionError, UnfinishedError
from workbench.core.generation.capture import Capture, Captured, captured_sites
from workbench.core.generation.rows import Piece, Rows
from workbench.core.generation.settings import (
    Limit,
    Settings,
    Stop,
    StopIds,
    Temperature,
    TopK,
    TopP,
    chunk_of,
    plan_of,
    settings_of,
)
from workbench.core.generation.writer import Manner, Writer
from workbench.core.guards import check_need, generation_need
from workbench.core.ledger import Receipt
from workbench.core.modes import outside_inference
from workbench.core.options import flag
from workbench.core.plan import Interventions, Plan
from workbench.core.program import compile_plan
from workbench.core.prompts import check_model, open_rows
from workbench.core.protocols import Model, keeps
from workbench.core.run import Check, Checked
from workbench.core.sampling import choose, generators
from workbench.core.sites import Selector, Site

__all__ = ["Generation", "Piece", "Stream", "generate"]


@final
@dataclass(frozen=True, eq=False)
class Generation:
    """Finished rows of a generation.

    `finish` says why each row ended: "stop" (an end token or a stop string), "length", or "context"
    where that ended before `max_new_tokens`.
    `plan` is the whole batch's: what was given for one row names it. `activations` are those that
    made the text, by site and row, one entry per position of prompt and generation.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    log_probabilities: tuple[tuple[float, ...], ...]
    finish: tuple[str, ...]
    prompt: tuple[tuple[int, ...], ...]
    plan: Plan
    receipts: tuple[Receipt, ...]
    activations: Mapping[Site, Captured] = field(default_factory=dict[Site, Captured])

    def __getitem__(self, site: Site | str) -> Captured:
        """The activations at a site, a tensor per row, with its positions first.

        Raises:
            NotRecordedError: If they were not recorded.
            UnknownNameError: If no such site exists anywhere.
        """
        key = Site.parse(site) if isinstance(site, str) else site
        if key not in self.activations:
            raise NotRecordedError(f"{key} was not recorded; pass it in record=.")
        return self.activations[key]

    @property
    def text(self) -> str:
        """The text of the only row.

        Raises:
            OptionError: If there are several.
        """
        if len(self.texts) != 1:
            raise OptionError("text", f"read from one row; use texts[0…{len(self.texts) - 1}]", "")
        return self.texts[0]


@final
class Stream(Iterator[Piece]):
    """The pieces of a generation as they come; `result` gives the whole of it afterwards.

    Nothing is run before the first piece is asked for, and nothing beyond the last one asked for.
    `close()`, or the end of a `with` block, ends it early and gives its memory back.
    """

    def __init__(self, pieces: Generator[Piece, None, Generation]) -> None:
        self._pieces = pieces
        self._made: Generation | None = None
        self._closed = False

    @override
    def __next__(self) -> Piece:
        try:
            piece = next(self._pieces)
        except StopIteration as over:
            if over.value is not None:  # or it was over before: by an error, or read to its end
                self._made = over.value
            raise
        if self._closed:  # by another thread, while this piece was made
            self._pieces.close()
        return piece

    def close(self) -> None:
        """Ends the generation: no piece comes any more, and cache and activations are let go.

        Where another thread is making a piece, that one is the last.
        """
        self._closed = True
        if getgeneratorstate(self._pieces) != GEN_RUNNING:
            self._pieces.close()

    def __enter__(self) -> "Stream":
        """The stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def result(self) -> Generation:
        """The finished generation, its receipts and what was recorded included.

        Raises:
            UnfinishedError: If there may be pieces to come, or an error or `close` ended it.
        """
        if self._made is None:
            hint = "read all of its pieces first; one that an error or close() ended has no result"
            raise UnfinishedError(f"The stream has not come to its end: {hint}.")
        return self._made


@overload
def generate(
    model: Model,
    prompt: Prompt,
    *,
    target: Prompt | None = ...,
    plan: Interventions = ...,
    plans: Iterable[Interventions] | None = ...,
    max_new_tokens: Limit = ...,
    temperature: Temperature = ...,
    top_k: TopK = ...,
    top_p: TopP = ...,
    seed: int | Sequence[int] = ...,
    stop: Stop = ...,
    stop_token_ids: StopIds = ...,
    ignore_eos: bool | Sequence[bool] = ...,
    stream: Literal[False] = ...,
    record: Selector = ...,
    use_cache: bool = ...,
    prefill_chunk: int | None = ...,
    share_prefix: bool = ...,
    check: Check | None = ...,
) -> Generation: ...


@overload
def generate(
    model: Model,
    prompt: Prompt,
    *,
    target: Prompt | None = ...,
    plan: Interventions = ...,
    plans: Iterable[Interventions] | None = ...,
    max_new_tokens: Limit = ...,
    temperature: Temperature = ...,
    top_k: TopK = ...,
    top_p: TopP = ...,
    seed: int | Sequence[int] = ...,
    stop: Stop = ...,
    stop_token_ids: StopIds = ...,
    ignore_eos: bool | Sequence[bool] = ...,
    stream: Literal[True],
    record: Selector = ...,
    use_cache: bool = ...,
    prefill_chunk: int | None = ...,
    share_prefix: bool = ...,
    check: Check | None = ...,
) -> Stream: ...


@outside_inference
def generate(  # noqa: PLR0913 - the arguments of a generation
    model: Model,
    prompt: Prompt,
    *,
    target: Prompt | None = None,
    plan: Interventions = (),
    plans: Iterable[Interventions] | None = None,
    max_new_tokens: Limit = 40,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: int | Sequence[int] = 0,
    stop: Stop = (),
    stop_token_ids: StopIds = (),
    ignore_eos: bool | Sequence[bool] = False,
    stream: bool = False,
    record: Selector = (),
    use_cache: bool = True,
    prefill_chunk: int | None = None,
    share_prefix: bool = True,
    check: Check | None = None,
) -> Generation | Stream:
    """Continues one prompt or several under a plan, or each under its own of `plans`.

    Greedy at `temperature` 0. Row i draws with `seed + i`, or with its own of a list of seeds;
    `temperature`, `top_k`, `top_p`, `max_new_tokens`, `stop`, `stop_token_ids` and `ignore_eos` may
    be lists of one per row, too. A row ends at the model's end tokens (unless `ignore_eos`), at one
    of `stop_token_ids`, at a `stop` string (all left out of the text), after `max_new_tokens`, or
    when the context is full. With `stream=True` gives `Piece`s as they come,
    and the `Generation` when they are over (see `Stream`). `record` keeps the activations that
    made the text. `plan` acts before `plans`. A model with an encoder reads the prompts there, and
    once; what it continues, and what is then called a prompt, is `target` (see `batch_of`). A model
    with a query stream reads the text so far both ways, anew for each token, and records nothing.

    Costs one forward over the prompts and one decode step per token (with `record` one more);
    without the cache, a full forward per token. A beginning that all prompts share is run once for
    all rows which the plans treat alike there; `prefill_chunk` bounds the tokens per row of one
    forward over the prompts, and so the memory. Neither changes a result beyond rounding. `check`
    is called at every site and may raise to cancel.

    Raises:
        PromptError: If a prompt is empty, too long, or leaves no room for a token.
        OptionError: If an option is outside its range, or a list is not one per row.
        NeverActedError: If an intervention of the plan never acted.
        NonFiniteError: If the logits stop being finite.
        MemoryLimitError: If it would not fit; says what would take less.
    """
    flag("stream", stream)
    check_model(model)
    batch = _prompts(model, prompt, target)
    rows = len(batch.tokens)
    settings = settings_of(
        model,
        batch,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        stop=stop,
        stop_token_ids=stop_token_ids,
        ignore_eos=ignore_eos,
    )
    sites = captured_sites(record, model)
    if sites and model.sizes.predicts:
        raise OptionError("record", "left out: run the finished text", record)
    draws = generators(seed, rows, model.device)
    cached = flag("use_cache", use_cache) and model.causal
    if cached and not keeps(model):
        wanted = f"False: {model.name} keeps nothing between passes"
        raise OptionError("use_cache", wanted, use_cache)
    chunk = chunk_of(prefill_chunk, use_cache=cached)
    program, room = compile_plan(plan_of(plan, plans, rows), model, rows), max(settings.limits)
    need = generation_need(model, batch, program, room, sites, cached=cached, chunk=chunk)
    check_need(need, model)
    writer = Writer(
        model,
        batch,
        program,
        room,
        Manner(cached, chunk, flag("share_prefix", share_prefix)),
        checks=() if check is None else (Checked(check),),
        capture=Capture(sites, rows, model),
    )
    said = Rows(model.tokenizer, settings)
    pieces = Stream(_pieces(writer, said, settings, draws, batch))
    if stream:
        return pieces
    deque(pieces, maxlen=0)
    return pieces.result()


def _prompts(model: Model, prompt: Prompt, target: Prompt | None) -> Batch:
    """What is continued, padded on the left."""
    if model.sizes.predicts and target is None:
        return padded(model, open_rows(model, prompt), "left", None)
    return batch_of(model, prompt, padding_side="left", target=target)


def _pieces(
    writer: Writer,
    rows: Rows,
    settings: Settings,
    draws: Sequence[torch.Generator],
    batch: Batch,
) -> Generator[Piece, None, Generation]:
    logits = writer.prefill()
    while True:
        chosen = choose(settings.samplers, logits, draws)
        said = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        before = rows.going
        yield from rows.push(chosen.tolist(), said.tolist())
        # The last token of a row chooses nothing, and is run only to record it.
        run = before if writer.capture.sites else rows.going
        if not any(run):
            break
        logits = writer.step(chosen, run)
        if not any(rows.going):
            break
    writer.finish()
    return _collect(writer, rows, batch)


def _collect(writer: Writer, rows: Rows, batch: Batch) -> Generation:
    return Generation(
        texts=tuple(rows.texts),
        tokens=tuple(map(tuple, rows.tokens)),
        log_probabilities=tuple(map(tuple, rows.said)),
        finish=tuple(rows.ended),
        prompt=tuple(_content(batch, row) for row in range(len(batch.tokens))),
        plan=writer.program.plan,
        receipts=writer.receipts,
        activations=MappingProxyType(writer.capture.found()),
    )


def _content(batch: Batch, row: int) -> tuple[int, ...]:
    kept = batch.tokens[row] if batch.real is None else batch.tokens[row][batch.real[row]]
    return tuple(kept.tolist())
