"""What one run left: logits, recorded activations and receipts; read-only, and it does not grow."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import Logits
from workbench.core.data import Batch
from workbench.core.errors import NotRecordedError
from workbench.core.plan import Plan
from workbench.core.program import Receipt
from workbench.core.protocols import Model
from workbench.core.sites import Site


@final
@dataclass(frozen=True, eq=False, repr=False)
class Trace(Mapping[Site, Tensor]):
    """A run's logits and activations, by site or by its name.

    Activations have the axes of their site and the columns of `batch`: where rows differ in
    length, `batch.real` tells pads from tokens. They are the run's own tensors, and neighbouring
    sites may share one: change a clone.
    """

    model: Model
    batch: Batch
    plan: Plan
    receipts: tuple[Receipt, ...]
    activations: Mapping[Site, Tensor]
    unembedded: Logits | None  # None if the run was not asked for logits
    columns: Int[Tensor, "batch column"] | None = field(default=None)  # None: every column
    vocabulary: Int[Tensor, " word"] | None = field(default=None)  # None: the whole vocabulary

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
        """The logits of each row's last token: what the model says next.

        Raises:
            NotRecordedError: If the run did not unembed that position.
        """
        rows = torch.arange(len(self.batch.last), device=self.logits.device)
        if self.columns is None:
            return self.logits[rows, self.batch.last]
        hit = self.columns == self.batch.last[:, None]
        if not bool(hit.any(1).all()):
            raise NotRecordedError(
                "The last position was not unembedded; ask for positions='last'."
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
        if key not in self.activations:
            raise NotRecordedError(f"{key} was not recorded; pass it in record=.")
        return self.activations[key]

    @override
    def __contains__(self, site: object) -> bool:
        return site in self.activations or site in [str(known) for known in self.activations]

    @override
    def __iter__(self) -> Iterator[Site]:
        return iter(self.activations)

    @override
    def __len__(self) -> int:
        return len(self.activations)

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

    @property
    def replayable(self) -> bool:
        """Whether the plan is data, so that this run can be made again from a file."""
        return self.plan.replayable
