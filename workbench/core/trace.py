"""What one run left: logits, recorded activations and receipts; read-only, and it does not grow."""

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NoReturn, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import Logits
from workbench.core.data import Batch
from workbench.core.errors import NotPicklableError, NotRecordedError
from workbench.core.ledger import Receipt
from workbench.core.plan import Plan
from workbench.core.protocols import Model
from workbench.core.replay import Left, Source
from workbench.core.sites import Selector, Site, Sites, select


@final
@dataclass(frozen=True, eq=False, repr=False)
class Trace(Mapping[Site, Tensor]):
    """A run's logits and activations, by site or by its name.

    Activations have the axes of their site and the columns of `batch`: where rows differ in
    length, `batch.real` tells pads from tokens. They are the run's own tensors, and neighbouring
    sites may share one: change a clone.

    A trace of `record="all"` keeps the stream before each block and makes the rest when it is
    read, one block each time, and does not keep it. Equal to the run's own within rounding, bit by
    bit for sites read without those inside fused kernels. `read`, `items` and `values` run each
    block once, however many of its sites they give.

    A trace of a run with `max_tokens` keeps what its batches left, and puts a site together when
    it is read: its pads are 0, in the logits too (of attention scores -inf, as all that is masked).
    """

    model: Model
    batch: Batch
    plan: Plan
    receipts: tuple[Receipt, ...]
    activations: Mapping[Site, Tensor]
    unembedded: Logits | None  # None if the run was not asked for logits
    columns: Int[Tensor, "batch column"] | None = field(default=None)  # None: every column
    vocabulary: Int[Tensor, " word"] | None = field(default=None)  # None: the whole vocabulary
    replay: Source | None = field(default=None)  # makes the sites that are not kept

    @property
    def logits(self) -> Logits:
        """The logits: of every column of the batch, or of the `positions` asked for.

        Raises:
            NotRecordedError: If the run was asked not to compute them.
        """
        if self.unembedded is None:
            raise NotRecordedError("This run stopped before the logits; leave out logits=False.")
        return self.unembedded

    @property
    def answer_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """The logits at each row's answer: of its last token, what the model says next.

        Of a model that reads both ways, at the one masked token, or where the batch asks.

        Raises:
            NotRecordedError: If the run did not unembed that position.
        """
        answer = self.batch.answer
        rows = torch.arange(len(answer), device=self.logits.device)
        if self.columns is None:
            return self.logits[rows, answer]
        hit = self.columns == answer[:, None]
        if not bool(hit.any(1).all()):
            raise NotRecordedError(
                "The answer's position was not unembedded; ask for positions='answer'."
            )
        return self.logits[rows, hit.int().argmax(1)]

    @override
    def __getitem__(self, site: Site | str) -> Tensor:
        """The activation at a site.

        Raises:
            NotRecordedError: If the run did not record it.
            UnknownNameError: If no such site exists anywhere.
        """
        key = Site.parse(site) if isinstance(site, str) else site
        if key in self.activations:
            return self.activations[key]
        if self.replay is None or key not in self.replay.sites:
            raise NotRecordedError(f"{key} was not recorded; pass it in record=.")
        return dict(self.replay.read((key,)))[key]

    @property
    def sites(self) -> Sites:
        """What can be read, in forward order."""
        return tuple(self.activations) if self.replay is None else self.replay.sites

    def read(self, selector: Selector) -> dict[Site, Tensor]:
        """The activations at several sites; each block they are in is replayed once, if at all.

        Costs memory for all of them at once: `items` gives them one block at a time.

        Raises:
            UnknownNameError: If the run recorded none that is named so.
            EmptySelectionError: If the selection is empty.
        """
        return dict(_pairs(self, select(selector, self.sites)))

    @override
    def items(self) -> ItemsView[Site, Tensor]:
        """Sites and activations, in forward order, one block at a time."""
        return _Items(self)

    @override
    def values(self) -> ValuesView[Tensor]:
        """Activations in forward order, one block at a time."""
        return _Values(self)

    @override
    def __contains__(self, site: object) -> bool:
        return site in self.sites or (isinstance(site, str) and site in map(str, self.sites))

    @override
    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    @override
    def __len__(self) -> int:
        return len(self.sites)

    @override
    def __eq__(self, other: object) -> bool:
        return self is other  # comparing tensors would answer with a tensor

    @override
    def __hash__(self) -> int:
        return id(self)

    @override
    def __repr__(self) -> str:
        rows, columns = self.batch.tokens.shape
        logits = "no logits" if self.unembedded is None else f"logits {tuple(self.logits.shape)}"
        changes = f"{len(self.plan)} interventions" if len(self.plan) else "no interventions"
        size = f"{rows} x {columns} tokens, {logits}, {len(self)} sites recorded"
        return f"Trace({self.model.name!r}, {size}, {changes})"

    @override
    def __reduce__(self) -> NoReturn:
        raise NotPicklableError(
            "A Trace refers to its model, which a pickle would copy. Save the tensors you need, "
            "dict(trace.read(...)), or run again: plan.save(folder) keeps what makes it."
        )

    @property
    def replayable(self) -> bool:
        """Whether the plan is data, so that this run can be made again from a file."""
        return self.plan.replayable


def _pairs(trace: Trace, sites: Sites) -> Iterator[tuple[Site, Tensor]]:
    """Sites and their activations, each block replayed once."""
    return Left(trace.activations, trace.replay, None).read(sites)


@final
class _Items(ItemsView[Site, Tensor]):
    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._trace = trace

    @override
    def __iter__(self) -> Iterator[tuple[Site, Tensor]]:
        return _pairs(self._trace, self._trace.sites)


@final
class _Values(ValuesView[Tensor]):
    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._trace = trace

    @override
    def __iter__(self) -> Iterator[Tensor]:
        return map(itemgetter(1), _pairs(self._trace, self._trace.sites))
