"""Reading activations of many texts: the engine below `harvest` and the activation store.

Notable: batches are cut by length under a token budget; the rows asked for are gathered on the
device at the moment their site is passed, so no whole activation outlives it; the forward ends at
the last site that is read, in the middle of a block if need be, and nothing is unembedded.
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.core.buckets import batches
from workbench.core.data import Batch, PaddingSide, batch_of, token_rows
from workbench.core.errors import (
    EmptySelectionError,
    NeverActedError,
    NonFiniteError,
    NotRecordedError,
    OptionError,
)
from workbench.core.ledger import Ledger
from workbench.core.modes import forward_only
from workbench.core.options import count
from workbench.core.plan import Interventions, Plan, as_plan
from workbench.core.program import compile_plan
from workbench.core.protocols import Model
from workbench.core.reading import Reading, ReadPositions, Take, Where, reading_of
from workbench.core.run import Check, Checked, not_finite
from workbench.core.sides import Side, side_of
from workbench.core.sites import Selector, Site, Sites, select
from workbench.core.tap import Enough, Tap, chain

Rows = Float[Tensor, "row d"]
Text = str | Sequence[int]


@final
@dataclass(frozen=True, eq=False)
class Chunk:
    """What one forward read: at each site the same rows, in the order of `where`."""

    rows: Mapping[Site, Rows]
    where: Where
    texts: tuple[int, ...]
    tokens: int  # of the texts
    computed: int  # pads included
    acted: tuple[int, ...]  # by intervention of the plan: the sites at which it changed something


@final
@dataclass(frozen=True, eq=False)
class Reader:
    """Everything that says what is read, worked out and checked before the first forward."""

    model: Model
    ids: tuple[tuple[int, ...], ...]  # the tokens of each text
    sites: Sites  # in forward order
    reading: Reading
    plan: Plan
    max_tokens: int
    padding_side: PaddingSide
    offsets: tuple[int, ...] = field(repr=False)  # where each text's rows begin; then their number

    @property
    def n_rows(self) -> int:
        """How many rows all texts have together."""
        return self.offsets[-1]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each text."""
        return tuple(map(len, self.ids))

    def chunks(
        self, texts: Sequence[int] | None = None, *, check: Check | None = None
    ) -> Iterator[Chunk]:
        """The rows of some texts, or of all, batch by batch: short texts first.

        Costs one forward per text up to the last site. `check` is called at every site and may
        raise to cancel.

        Raises:
            NonFiniteError: If a row is not finite; names the site and the text.
            NotRecordedError: If the model never passed one of the sites.
        """
        asked = range(len(self.ids)) if texts is None else texts
        for batch in batches(self.lengths, asked, self.max_tokens):
            yield self._read(batch, check)

    def check_acted(self, acted: Sequence[int]) -> None:
        """Refuses a plan of which a part never acted on any text; `acted` sums up all chunks.

        Raises:
            NeverActedError: If an intervention that is not optional selected no token at all.
        """
        for i, (one, times) in enumerate(zip(self.plan, acted, strict=True)):
            if not (times or one.optional or one.size == 0):
                raise NeverActedError(
                    f"plan[{i}], {one}, never acted: its scope selects no token of any text. "
                    "Mark it optional if that is meant."
                )

    def _read(self, texts: list[int], check: Check | None) -> Chunk:
        batch = batch_of(self.model, [self.ids[i] for i in texts], padding_side=self.padding_side)
        program, ledger = compile_plan(self.plan, self.model, len(texts)), Ledger(self.plan)
        gather = Gather(self.sites, self.reading.take(texts, batch.source or batch))
        checks = () if check is None else (Checked(check),)
        _forward(self.model, batch, chain(*checks, program.tap(batch, ledger), gather))
        rows = gather.rows
        where = self.reading.where(texts, self.ids, self.offsets)
        missing = [str(site) for site in self.sites if site not in rows]
        if missing:
            raise NotRecordedError(f"The forward never passed {', '.join(missing)}.")
        for site in self.sites:
            check_finite(site, rows[site], where)
        return Chunk(
            rows={site: rows[site] for site in self.sites},
            where=where,
            texts=tuple(texts),
            tokens=sum(len(self.ids[i]) for i in texts),
            computed=(batch.source or batch).tokens.numel(),
            acted=tuple(receipt.acted for receipt in ledger.receipts()),
        )


def reader_of(  # noqa: PLR0913 - what is read, where, of what, and in which batches
    model: Model,
    texts: Sequence[Text],
    sites: Selector,
    *,
    position: ReadPositions = "last",
    plan: Interventions = (),
    max_tokens: int = 2048,
    padding_side: PaddingSide = "right",
) -> Reader:
    """Works out what is to be read; nothing runs.

    Raises:
        UnknownNameError: If the model lacks one of `sites`, or a site of the plan.
        OptionError: If a text is too short for `position`, or the plan names rows, or a site is a
            decoder's that reads an encoder, or the model has a query stream.
        PromptError: If a text cannot be run.
        NeverActedError: If an intervention acts only after the last site that is read.
        EmptySelectionError: If one names positions that no text has.
    """
    wanted, rows, plan = select(sites, model.sites), token_rows(model, texts), as_plan(plan)
    if model.sizes.predicts:
        raise OptionError("model", "of the content stream alone: it reads the texts", model.name)
    encoder = bool(model.sizes.n_encoder_layers)
    for site in wanted:
        if "pos" not in site.axes:
            raise OptionError("sites", "sites with a position axis", str(site))
        if encoder and side_of(site, model) is not Side.SOURCE:
            raise OptionError("sites", "the encoder's, which reads the texts", str(site))
    if padding_side not in ("left", "right"):
        raise OptionError("padding_side", "'left' or 'right'", padding_side)
    _check_plan(plan, model, wanted[-1], [len(row) for row in rows])
    bos = None if model.tokenizer is None else model.tokenizer.bos_id
    reading = reading_of(position, rows, bos)
    return Reader(
        model=model,
        ids=tuple(rows),
        sites=wanted,
        reading=reading,
        plan=plan,
        max_tokens=count("max_tokens", max_tokens),
        padding_side=padding_side,
        offsets=reading.offsets,
    )


def check_finite(site: Site, rows: Rows, where: Where) -> None:
    """Refuses rows that are not finite.

    Raises:
        NonFiniteError: If a value is NaN or infinite; names the site and the first such text.
    """
    if bad := not_finite(rows):
        first = int((~torch.isfinite(rows)).any(1).int().argmax())
        raise NonFiniteError(f"{site}, text {int(where.text[first])}", bad, rows.numel())


def tokens_digest(ids: Sequence[Sequence[int]]) -> str:
    """A short SHA-256 of the tokens of all texts, in order."""
    total = hashlib.sha256()
    for row in ids:
        total.update(array("q", (len(row), *row)).tobytes())
    return total.hexdigest()[:16]


@final
class Gather(Tap):
    """Reads the rows of each of `sites` as it is passed, and ends the forward after the last."""

    def __init__(self, sites: Sites, take: Take) -> None:
        self._missing, self._take = set(sites), take
        self.rows: dict[Site, Rows] = {}

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site in self._missing:
            self.rows[site] = self._take(value)
            self._missing.remove(site)
            if not self._missing:
                raise Enough
        return value

    @override
    def wants(self, site: Site) -> bool:
        return site in self._missing


def _forward(model: Model, batch: Batch, tap: Tap) -> None:
    """A forward for its tap's sake; a model is left as it was wherever a tap ends it."""
    with forward_only(), suppress(Enough):
        resid = model.layers(model.embed(batch, tap), batch, tap)
        model.unembed(resid, tap)


def _check_plan(plan: Plan, model: Model, last: Site, lengths: Sequence[int]) -> None:
    order = {site: place for place, site in enumerate(model.sites)}
    compile_plan(plan, model, 1)
    for i, one in enumerate(plan):
        if one.rows is not None:
            raise OptionError("plan", "without rows: texts are batched by length", str(one))
        if one.optional or one.size == 0:
            continue
        if all(order[site] > order[last] for site in select(one.sites, model.sites)):
            raise NeverActedError(
                f"plan[{i}], {one}, never acted: the forward ends at {last}. "
                "Mark it optional if that is meant."
            )
        if missed := one.positions.missed(lengths, lengths):
            raise EmptySelectionError(
                f"plan[{i}], {one}: positions {list(missed)} are beyond the {max(lengths)} "
                "tokens of the longest text. Mark it optional if that is meant."
            )
