"""The passes of one generation: the prompts, shared and in chunks, then a step per token.

Notable: what is run together is chosen for speed alone. Positions are absolute, and the tokens of
every row are kept by position, so scopes and schedules mean the same however a text is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.cache import KeyValueCache
from workbench.core.data import Batch
from workbench.core.errors import NonFiniteError
from workbench.core.generation import prefix
from workbench.core.generation.capture import Capture
from workbench.core.ledger import Ledger, Receipt
from workbench.core.modes import forward_only
from workbench.core.predictions import following
from workbench.core.program import Program, compile_plan
from workbench.core.protocols import Model, new_cache
from workbench.core.run import FiniteWatch, not_finite, unembed_at
from workbench.core.tap import Tap, chain

Answers = Float[Tensor, "batch d_vocab"]


@final
@dataclass(frozen=True)
class Manner:
    """How the passes are made: with a cache or anew, the columns of a chunk, a shared beginning."""

    cached: bool
    chunk: int | None
    share: bool


@final
class Writer:
    """The forwards of one generation, and what they left."""

    def __init__(  # noqa: PLR0913 - the parts of a generation
        self,
        model: Model,
        batch: Batch,
        program: Program,
        room: int,
        manner: Manner,
        *,
        checks: Sequence[Tap],
        capture: Capture,
    ) -> None:
        self._model, self._prompts, self._manner = model, batch, manner
        self.program, self.capture, self._checks = program, capture, tuple(checks)
        self.receipts: tuple[Receipt, ...] = ()
        self._ledger = Ledger(program.plan)
        rows, width = batch.tokens.shape
        # Grows in place, but only beyond what any pass before has looked at.
        self._said = torch.full((rows, width + room), -1, device=batch.tokens.device)
        self._said[:, :width] = batch.place.content
        self._lengths = batch.prompt.clone()
        share = manner.cached and manner.share and batch.source is None
        self._shared = prefix.beginnings(batch, program) if share else ()
        columns = prefix.columns(batch, self._shared) + room
        self._cache = new_cache(model, rows, columns) if manner.cached else None
        # Where the cache's columns stand, for those who ask by position: rows may have gaps.
        asked = capture.keyed or any(one.keys is not None for one in program.plan)
        self._keys = self._said.new_full((rows, columns), -1) if manner.cached and asked else None

    def prefill(self) -> Answers:
        """Logits after the prompts."""
        if self._cache is None:
            return self._anew()
        batch = self._prompts
        if self._shared:
            batch = prefix.rest(batch, self._begin(self._cache, self._shared))
        return self._chunks(replace(batch, said=self._said), self._cache)

    def step(self, chosen: Int[Tensor, " batch"], going: Sequence[bool]) -> Answers:
        """Logits after one more token in each row that is `going`; the others get a pad."""
        new = torch.tensor(going, device=chosen.device)
        start = self._lengths
        at = start[:, None].clamp(max=self._said.shape[1] - 1)
        told = torch.where(new[:, None], chosen[:, None], self._said.gather(1, at))
        self._said.scatter_(1, at, told)
        self._lengths = start + new
        if self._cache is None:
            return self._anew()
        real = None if all(going) else new[:, None]
        batch = Batch(chosen[:, None], real, start, self._prompts.prompt, self._said)
        if self._prompts.source is not None:
            batch = replace(batch, source=self._prompts.source, encoded=True)
        return self._answers(batch, self._cache)

    def finish(self) -> None:
        """Closes the account; raises if an intervention never acted."""
        ended = "its scope selects no token that the generation reached"
        lengths = self._lengths.tolist()
        self.receipts = self.program.finish(self._ledger, self._prompts, ended, lengths=lengths)

    def _begin(
        self, cache: KeyValueCache, shared: Sequence[prefix.Beginning]
    ) -> Int[Tensor, " batch"]:
        """Runs each beginning once for all rows that are alike in it; how many tokens that was."""
        done = torch.zeros_like(self._prompts.prompt)
        filled: list[tuple[Sequence[int], KeyValueCache]] = []
        for beginning in shared:
            done[list(beginning.rows)] = beginning.length
            alike = prefix.groups(self._prompts, beginning, self.program)
            filled.extend((group.rows, self._begun(group, beginning.length)) for group in alike)
        prefix.join(cache, filled, done, self._model.sizes.n_layers)
        if self._keys is not None:
            columns = torch.arange(int(done.max()), device=done.device)
            self._keys[:, : len(columns)] = torch.where(columns < done[:, None], columns, -1)
        return done

    def _begun(self, group: prefix.Group, length: int) -> KeyValueCache:
        """Runs the first tokens of one row of a group, for all of it."""
        own, ledger = new_cache(self._model, 1, length), Ledger(group.plan)
        program = compile_plan(group.plan, self._model, 1)
        for part in self._parts(prefix.one_row(self._prompts, group.rows[0], length)):
            self._pass(part, own, program, ledger, rows=group.rows)
        self._ledger.absorb(ledger, group.places, len(self._prompts.tokens))
        return own

    def _parts(self, batch: Batch) -> list[Batch]:
        width = batch.tokens.shape[1]
        chunk = self._manner.chunk or width
        if chunk >= width:
            return [batch]
        return [batch.columns(at, min(at + chunk, width)) for at in range(0, width, chunk)]

    def _chunks(self, batch: Batch, cache: KeyValueCache) -> Answers:
        *before, last = self._parts(batch)  # padded on the left: all rows end in the last one
        for part in before:
            self._pass(part, cache, self.program, self._ledger)
        return self._answers(last, cache)

    def _anew(self) -> Answers:
        """One full forward, which acts on every token anew, and leaves all activations."""
        self._ledger = Ledger(self.program.plan)
        self.capture.forget()
        return self._answers(self._whole(), None)

    def _whole(self) -> Batch:
        """All tokens so far as one pass."""
        said = self._said[:, : int(self._lengths.max())]
        real = said >= 0
        start, prompt = torch.zeros_like(self._lengths), self._prompts.prompt
        whole = Batch(said.clamp(min=0), None if bool(real.all()) else real, start, prompt)
        if self._model.sizes.predicts:
            return following(self._model, whole)
        return replace(whole, source=self._prompts.source)

    def _answers(self, batch: Batch, cache: KeyValueCache | None) -> Answers:
        at = batch.last[:, None]
        logits = self._pass(batch, cache, self.program, self._ledger, columns=at)[:, 0]
        if bad := not_finite(logits):
            self._locate()
            raise NonFiniteError("the logits of a generated token", bad, logits.numel())
        return logits

    def _pass(
        self,
        batch: Batch,
        cache: KeyValueCache | None,
        program: Program,
        ledger: Ledger,
        *,
        columns: Int[Tensor, "batch column"] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch column d_vocab"]:
        """One forward; logits of some columns, or of none: only what is tapped there is made."""
        batch = self._told(batch, cache) if rows is None else batch
        recorder = self.capture.begin()
        seen = (recorder,) if self.capture.sites else ()
        tap = chain(*self._checks, program.tap(batch, ledger), *seen)
        at = batch.last[:, None][:, :0] if columns is None else columns
        with forward_only():
            resid = self._model.embed(batch, tap)
            resid = self._model.layers(resid, batch, tap, cache=cache)
            logits = unembed_at(self._model, resid, tap, at)
        self.capture.keep(recorder, batch, rows)
        return logits

    def _told(self, batch: Batch, cache: KeyValueCache | None) -> Batch:
        """The pass with the positions of its keys, where somebody may ask for them."""
        if self._keys is None or cache is None:
            return batch
        start, end = cache.length, cache.length + batch.tokens.shape[1]
        real = batch.real
        own = batch.positions if real is None else batch.positions.masked_fill(~real, -1)
        self._keys[:, start:end] = own
        return replace(batch, keys=self._keys[:, :end])

    def _locate(self) -> None:
        """Runs the text so far in one pass, which stops at the first site that is not finite."""
        batch = self._whole()
        tap = chain(self.program.tap(batch, Ledger(self.program.plan)), FiniteWatch())
        with forward_only():
            self._model.unembed(self._model.layers(self._model.embed(batch, tap), batch, tap), tap)
