"""Generation as a pure function: cache, sampler, seeds, stop rules and plan are its arguments.

Notable: positions are absolute, so an intervention means the same in the prompt, in a decode step
and in one full forward over the finished text; a row never depends on its neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.data import Batch, Prompt, batch_of
from workbench.core.errors import NonFiniteError, OptionError, PromptError
from workbench.core.modes import forward_only, outside_inference
from workbench.core.options import count, flag, texts
from workbench.core.plan import Interventions, Plan, as_plan
from workbench.core.program import Ledger, Program, Receipt, compile_plan
from workbench.core.protocols import Model, Vocabulary, new_cache
from workbench.core.run import Check, Checked, FiniteWatch, not_finite, unembed_at
from workbench.core.sampling import Sampler, generators
from workbench.core.tap import Tap, chain
from workbench.core.text_stream import TextStream


@final
@dataclass(frozen=True)
class Piece:
    """One generated token; prints as the text it completed, which may be empty or several."""

    row: int
    token: int
    text: str
    log_probability: float  # under the model as steered, before temperature and truncation
    done: bool

    @override
    def __str__(self) -> str:
        return self.text


@final
@dataclass(frozen=True, eq=False)
class Generation:
    """Finished rows of a generation.

    `finish` says why each row ended: "stop" (an end token or a stop string) or "length".
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    log_probabilities: tuple[tuple[float, ...], ...]
    finish: tuple[str, ...]
    prompt: tuple[tuple[int, ...], ...]
    plan: Plan
    receipts: tuple[Receipt, ...]

    @property
    def text(self) -> str:
        """The text of the only row.

        Raises:
            OptionError: If there are several.
        """
        if len(self.texts) != 1:
            raise OptionError("text", f"read from one row; use texts[0…{len(self.texts) - 1}]", "")
        return self.texts[0]


@overload
def generate(
    model: Model,
    prompt: Prompt,
    *,
    plan: Interventions = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    seed: int | Sequence[int] = ...,
    stop: str | Sequence[str] = ...,
    stream: Literal[False] = ...,
    use_cache: bool = ...,
    check: Check | None = ...,
) -> Generation: ...


@overload
def generate(
    model: Model,
    prompt: Prompt,
    *,
    plan: Interventions = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    seed: int | Sequence[int] = ...,
    stop: str | Sequence[str] = ...,
    stream: Literal[True],
    use_cache: bool = ...,
    check: Check | None = ...,
) -> Iterator[Piece]: ...


@outside_inference
def generate(  # noqa: PLR0913 - the arguments of a generation
    model: Model,
    prompt: Prompt,
    *,
    plan: Interventions = (),
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    stop: str | Sequence[str] = (),
    stream: bool = False,
    use_cache: bool = True,
    check: Check | None = None,
) -> Generation | Iterator[Piece]:
    """Continues one prompt or several under a plan.

    Greedy at `temperature` 0. Row i draws with `seed + i`, or with its own of a list of seeds.
    Ends at the model's end tokens, at a `stop` string (which is left out), after
    `max_new_tokens`, or when the context is full. With `stream=True` gives `Piece`s as they come.
    Costs one forward over the prompts and one decode step per token; without the cache, a full
    forward per token. `check` is called at every site and may raise to cancel.

    Raises:
        PromptError: If a prompt is empty, too long, or leaves no room for a token.
        OptionError: If an option is outside its range.
        NeverActedError: If an intervention of the plan never acted.
        NonFiniteError: If the logits stop being finite.
    """
    count("max_new_tokens", max_new_tokens)
    flag("stream", stream)
    flag("use_cache", use_cache)
    stops = texts("stop", stop)
    if "" in stops:
        raise OptionError("stop", "texts that are not empty", stops)
    batch = batch_of(model, prompt, padding_side="left")
    rooms = (model.sizes.n_ctx - batch.prompt).tolist()
    if min(rooms) < 1:
        raise PromptError(
            f"Prompt {rooms.index(min(rooms))} fills the whole context of {model.sizes.n_ctx} "
            "tokens; nothing can be added. Shorten it."
        )
    if stops and model.tokenizer is None:
        raise OptionError("stop", "left out: this model has no tokenizer", stops)
    sampler = Sampler(temperature, top_k, top_p)
    draws = generators(seed, len(batch.tokens), model.device)
    limits = [min(max_new_tokens, room) for room in rooms]
    capacity = batch.tokens.shape[1] + max(limits) if use_cache else None
    writer = _Writer(model, batch, as_plan(plan), capacity, check)
    rows = _Rows(model.tokenizer, limits, stops)
    pieces = _pieces(writer, rows, sampler, draws)
    return pieces if stream else _collect(pieces, writer, rows, batch)


def _pieces(
    writer: "_Writer",
    rows: "_Rows",
    sampler: Sampler,
    draws: Sequence[torch.Generator],
) -> Iterator[Piece]:
    logits = writer.prefill()
    while True:
        chosen = sampler.choose(logits, draws)
        said = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        yield from rows.push(chosen.tolist(), said.tolist())
        if not any(rows.going):
            break
        logits = writer.step(chosen, rows.going)
    writer.finish()


def _collect(pieces: Iterator[Piece], writer: "_Writer", rows: "_Rows", batch: Batch) -> Generation:
    texts = [""] * len(batch.tokens)
    for piece in pieces:
        texts[piece.row] += piece.text
    return Generation(
        texts=tuple(texts),
        tokens=tuple(map(tuple, rows.tokens)),
        log_probabilities=tuple(map(tuple, rows.said)),
        finish=tuple(rows.ended),
        prompt=tuple(_content(batch, row) for row in range(len(batch.tokens))),
        plan=writer.program.plan,
        receipts=writer.receipts,
    )


def _content(batch: Batch, row: int) -> tuple[int, ...]:
    kept = batch.tokens[row] if batch.real is None else batch.tokens[row][batch.real[row]]
    return tuple(kept.tolist())


@final
class _Rows:
    """What each row has said, and whether it has ended."""

    def __init__(
        self, vocabulary: Vocabulary | None, limits: Sequence[int], stops: tuple[str, ...]
    ) -> None:
        rows = range(len(limits))
        self._limits = limits
        self._ends = frozenset(() if vocabulary is None else vocabulary.eos_ids)
        self._streams = [
            None if vocabulary is None else TextStream(vocabulary, stops) for _ in rows
        ]
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.said: list[list[float]] = [[] for _ in rows]
        self.ended = [""] * len(rows)

    @property
    def going(self) -> list[bool]:
        """Which rows have not ended."""
        return [not reason for reason in self.ended]

    def push(self, chosen: list[int], said: list[float]) -> Iterator[Piece]:
        """The pieces of one step; rows that have ended stay silent."""
        for row, (token, log_probability) in enumerate(zip(chosen, said, strict=True)):
            if not self.ended[row]:
                yield self._piece(row, token, log_probability)

    def _piece(self, row: int, token: int, log_probability: float) -> Piece:
        self.tokens[row].append(token)
        self.said[row].append(log_probability)
        stream = self._streams[row]
        text, end = "", token in self._ends
        last = end or len(self.tokens[row]) == self._limits[row]
        if stream is not None:
            text = "" if end else stream.push(token)
            text += stream.flush() if last else ""  # which may complete a stop string
            end = end or stream.stopped
        if end or last:
            self.ended[row] = "stop" if end else "length"
        return Piece(row, token, text, log_probability, done=bool(self.ended[row]))


@final
class _Writer:
    """The passes of one generation: a prefill, then a step per token, cached or in full."""

    def __init__(
        self, model: Model, batch: Batch, plan: Plan, capacity: int | None, check: Check | None
    ) -> None:
        self._model, self._batch = model, batch
        self.program: Program = compile_plan(plan, model, len(batch.tokens))
        self.receipts: tuple[Receipt, ...] = ()
        self._ledger = Ledger(plan)
        self._checks: tuple[Tap, ...] = () if check is None else (Checked(check),)
        rows = len(batch.tokens)
        self._cache = None if capacity is None else new_cache(model, rows, capacity)
        self._passes: list[Batch] = []  # what the cache holds, to tell where a NaN came from

    def prefill(self) -> Float[Tensor, "batch d_vocab"]:
        """Logits after the prompts."""
        return self._forward(self._batch)

    def step(
        self, chosen: Int[Tensor, " batch"], going: Sequence[bool]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Logits after one more token in each row that is `going`; the others get a pad."""
        old = self._batch
        new = torch.tensor(going, device=chosen.device)[:, None]
        if self._cache is not None:
            start = old.start + old.lengths
            self._batch = Batch(chosen[:, None], None if all(going) else new, start, old.prompt)
            return self._forward(self._batch)
        before = torch.ones_like(old.tokens, dtype=torch.bool) if old.real is None else old.real
        real = None if old.real is None and all(going) else torch.cat([before, new], 1)
        tokens = torch.cat([old.tokens, chosen[:, None]], 1)
        self._batch = Batch(tokens, real, old.start, old.prompt)
        self._ledger = Ledger(self.program.plan)  # a full forward acts on every token anew
        return self._forward(self._batch)

    def finish(self) -> None:
        """Closes the account; raises if an intervention never acted."""
        ended = "its scope selects no token that the generation reached"
        lengths = (self._batch.start + self._batch.lengths).tolist()
        prompts = self._batch.prompt.tolist()
        self.receipts = self.program.finish(self._ledger, prompts, ended, lengths=lengths)

    def _forward(self, batch: Batch) -> Float[Tensor, "batch d_vocab"]:
        if self._cache is None:
            self._passes.clear()
        self._passes.append(batch)
        tap = chain(*self._checks, self.program.tap(batch.place, self._ledger))
        with forward_only():
            resid = self._model.embed(batch, tap)
            resid = self._model.layers(resid, batch, tap, cache=self._cache)
            logits = unembed_at(self._model, resid, tap, batch.last[:, None])[:, 0]
        if bad := not_finite(logits):
            self._locate()
            raise NonFiniteError("the logits of a generated token", bad, logits.numel())
        return logits

    def _locate(self) -> None:
        """Runs the text so far in one pass, which stops at the first site that is not finite."""
        batch = _joined(self._passes)
        tap = chain(self.program.tap(batch.place, Ledger(self.program.plan)), FiniteWatch())
        with forward_only():
            self._model.unembed(self._model.layers(self._model.embed(batch, tap), batch, tap), tap)


def _joined(passes: Sequence[Batch]) -> Batch:
    """Several passes over a cache as one without."""
    real = [torch.ones_like(b.tokens).bool() if b.real is None else b.real for b in passes]
    tokens = torch.cat([batch.tokens for batch in passes], 1)
    return Batch(tokens, torch.cat(real, 1), passes[0].start, passes[0].prompt)
