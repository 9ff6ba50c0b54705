"""A model that counts what of it runs: blocks, embeddings and unembedded columns."""

from typing import final

import torch
from torch import Tensor

from workbench.core.axes import Logits, Resid
from workbench.core.cache import Cache
from workbench.core.data import Batch
from workbench.core.protocols import Sizes, Vocabulary
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.transformer import Transformer


@final
class Counting:
    """Passes everything on to a model; `blocks` are those that ran, in order."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.blocks: list[int] = []
        self.embedded = 0
        self.passes: list[tuple[int, ...]] = []
        self.unembedded: list[tuple[int, ...]] = []

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """The model's."""
        return self.model.fingerprint

    @property
    def sites(self) -> Sites:
        """The model's."""
        return self.model.sites

    @property
    def sizes(self) -> Sizes:
        """The model's."""
        return self.model.sizes

    @property
    def causal(self) -> bool:
        """The model's."""
        return self.model.causal

    @property
    def tokenizer(self) -> Vocabulary | None:
        """The model's."""
        return self.model.tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """The model's."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """Counts one embedding, and notes its rows and columns."""
        self.embedded += 1
        self.passes.append(tuple(batch.tokens.shape))
        return self.model.embed(batch, tap)

    def layers(
        self,
        resid: Resid,
        batch: Batch,
        tap: Tap,
        *,
        first: int = 0,
        last: int | None = None,
        cache: Cache | None = None,
    ) -> Resid:
        """Counts the blocks."""
        self.blocks += range(self.sizes.n_layers)[first:last]
        return self.model.layers(resid, batch, tap, first=first, last=last, cache=cache)

    def unembed(self, resid: Resid, tap: Tap, *, vocabulary: Tensor | None = None) -> Logits:
        """Notes the shape of what is unembedded."""
        width = self.sizes.d_vocab if vocabulary is None else len(vocabulary)
        self.unembedded.append((*resid.shape[:2], width))
        return self.model.unembed(resid, tap, vocabulary=vocabulary)

    def forget(self) -> None:
        """Counts from zero."""
        self.blocks, self.embedded, self.passes, self.unembedded = [], 0, [], []
