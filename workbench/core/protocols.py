"""What a model is to everything above it: sites, sizes, and a pure forward in three steps.

Methods depend on these protocols only, so they can be tested on a tiny linear model whose answers
are known exactly, and work on models of foreign libraries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.core.axes import Logits, Resid
from workbench.core.cache import Cache, KeyValueCache
from workbench.core.data import Batch
from workbench.core.sites import Sites
from workbench.core.tap import Tap


@dataclass(frozen=True)
class Output:
    """What the columns of a model's logits are, and which position metrics read.

    Columns are the vocabulary; or a classifier's `labels`; or, without a head, the stream's d_model
    coordinates. The answer is read at the last token, the first, the one masked token, or where
    the caller says.
    """

    columns: Literal["vocabulary", "labels", "stream"] = "vocabulary"
    answer: Literal["last", "first", "mask", "asked"] = "last"
    labels: tuple[str, ...] = ()


NEXT_TOKEN = Output()


@dataclass(frozen=True)
class Streams:
    """What the batches of a model with XLNet's attention tell, beside the tokens.

    With `query` there is a second stream of targets, which a batch must have. With `halves` the
    second half of a batch's rows is read as if it ran backwards. Token types and the memory of
    earlier segments they may have in any case.
    """

    query: bool = False
    halves: bool = False


@dataclass(frozen=True)
class Sizes:
    """The counts and widths of a model, and what its logits are.

    Of `n_layers` blocks the first `n_encoder_layers` are those of an encoder; the others, its
    decoder's, say something after `start_id` at the least.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    n_encoder_layers: int = 0
    start_id: int | None = None
    output: Output = NEXT_TOKEN
    streams: Streams | None = None

    @property
    def reads_source(self) -> bool:
        """Whether batches have a source: what an encoder reads, or the content of targets."""
        return self.n_encoder_layers > 0 or self.predicts

    @property
    def predicts(self) -> bool:
        """Whether there is a query stream, so that logits are of a batch's targets."""
        return self.streams is not None and self.streams.query

    @property
    def d_out(self) -> int:
        """How many columns the logits have."""
        widths = {"vocabulary": self.d_vocab, "stream": self.d_model}
        return widths.get(self.output.columns, len(self.output.labels))


@runtime_checkable
class Vocabulary(Protocol):
    """Text to tokens and back; never changed, so threads may share it."""

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, where the model has one."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        ...

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The ids of a text, with the special tokens its model expects around it."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ids."""
        ...

    def token_text(self, token: int) -> str:
        """One token, readable, its leading space kept."""
        ...

    def single(self, text: str) -> int:
        """The one token that `text` is.

        Raises:
            TokenError: If it is none or several; suggests near ones.
        """
        ...


@runtime_checkable
class Masking(Protocol):
    """A vocabulary with a token that stands for a word to be found."""

    @property
    def mask_id(self) -> int | None:
        """That token, where there is one."""
        ...


@runtime_checkable
class Pairing(Protocol):
    """A vocabulary that knows how two texts stand in one row."""

    def encode_pair(self, first: str, second: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids of a row, and the type of each token."""
        ...


@runtime_checkable
class Model(Protocol):
    """A frozen language model. Nothing about a run is ever stored on it."""

    @property
    def name(self) -> str:
        """What it was loaded as."""
        ...

    @property
    def fingerprint(self) -> str:
        """A short digest of configuration and weights."""
        ...

    @property
    def sites(self) -> Sites:
        """Every site, in forward order."""
        ...

    @property
    def sizes(self) -> Sizes:
        """Its counts and widths."""
        ...

    @property
    def causal(self) -> bool:
        """Whether a position never sees later ones, so that what comes before it can be kept."""
        ...

    @property
    def tokenizer(self) -> Vocabulary | None:
        """Its vocabulary, where it has one."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The residual stream before block 0."""
        ...

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
        """The stream after blocks `first` (inclusive) to `last` (exclusive; None: all of them).

        Where there is an encoder, a stream has the columns of the source before those of the
        target, as long as a block is to come that may read them.
        """
        ...

    def unembed(self, resid: Resid, tap: Tap, *, vocabulary: Tensor | None = None) -> Logits:
        """Logits of a stream after the last block; of the given vocabulary columns only."""
        ...


@runtime_checkable
class Uncached(Protocol):
    """A model that may keep nothing between passes, so that each pass is a whole one."""

    @property
    def uncached(self) -> bool:
        """Whether it keeps no keys and values."""
        ...


def keeps(model: Model) -> bool:
    """Whether a pass can go on from the keys and values of one before it."""
    return not (isinstance(model, Uncached) and model.uncached)


def new_cache(model: Model, batch: int, capacity: int) -> KeyValueCache:
    """An empty cache for `batch` rows of at most `capacity` columns, those of an encoder aside."""
    sizes = model.sizes
    return KeyValueCache(
        sizes.n_layers - sizes.n_encoder_layers,
        batch,
        capacity,
        sizes.n_key_value_heads,
        sizes.d_head,
        dtype=model.dtype,
        device=model.device,
    )
