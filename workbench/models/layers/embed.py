"""Embedding and unembedding."""

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import Logits, Resid
from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import outside_blocks
from workbench.models.layers.head import AnyHead
from workbench.models.layers.linear import Tiled
from workbench.models.layers.norm import Norm


class AnyEmbedding(nn.Module, ABC):
    """What a stack asks of its first part: tokens to the stream before block 0."""

    tokens: nn.Parameter
    positions: nn.Parameter | None  # learned ones, where it has them
    sites: Sites

    @abstractmethod
    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The residual stream before block 0."""


@final
class Embedding(AnyEmbedding):
    """Token embedding, times `scale`, with learned positions where `n_positions` is given.

    With `d_embed` tokens are so wide, and projected to d_model; with `norm` they are normalised.
    All that is before `hook_embed`, which is what enters the stream. `idle` positions are weights
    that nothing reads: classic models with ALiBi have such a table beside it.
    """

    def __init__(  # noqa: PLR0913 - the sizes and choices of the brick
        self,
        d_vocab: int,
        d_model: int,
        n_positions: int | None = None,
        *,
        scale: float | None = None,
        d_embed: int | None = None,
        norm: Norm | None = None,
        idle: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.ln, self.idle = scale, norm, idle
        self.tokens = nn.Parameter(torch.empty(d_vocab, d_embed or d_model))
        self.project = None if d_embed is None else nn.Linear(d_embed, d_model, bias=False)
        learned = None if n_positions is None else nn.Parameter(torch.empty(n_positions, d_model))
        self.positions = learned
        self.at_embed = outside_blocks("hook_embed")
        self.at_positions = outside_blocks("hook_pos_embed")
        before = () if norm is None else norm.sites
        after = () if learned is None or idle else (self.at_positions,)
        self.sites = (*before, self.at_embed, *after)

    @override
    def embed(self, batch: Batch, tap: Tap) -> Resid:
        found = F.embedding(batch.tokens, self.tokens)
        if self.scale is not None:  # rounded to the weights' dtype first, as models are trained
            found = found * torch.tensor(self.scale, dtype=found.dtype, device=found.device)
        found = found if self.project is None else self.project(found)
        found = found if self.ln is None else self.ln.normalise(found, tap)
        resid = tap(self.at_embed, found)
        if self.positions is None or self.idle:
            return resid
        learned = F.embedding(batch.positions, self.positions)
        if batch.real is not None:
            learned = learned * batch.real[:, :, None]  # a pad has no position
        return resid + tap(self.at_positions, learned)


@final
class NormedEmbedding(AnyEmbedding):
    """Tokens, with what types and positions there are, added up and normalised: an encoder's.

    With `d_embed` these are so wide, and projected to d_model. With `padding`, the id of pads,
    positions count from the one after it, and a pad among the tokens stands at it, as RoBERTa has
    it.
    """

    def __init__(  # noqa: PLR0913 - the sizes and choices of the brick
        self,
        d_vocab: int,
        d_model: int,
        norm: Norm,
        *,
        n_positions: int | None = None,
        n_types: int | None = None,
        d_embed: int | None = None,
        project_bias: bool = True,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        width = d_model if d_embed is None else d_embed
        self.tokens = nn.Parameter(torch.empty(d_vocab, width))
        self.positions = None if n_positions is None else table(n_positions, width)
        self.types = None if n_types is None else table(n_types, width)
        narrow = d_embed is not None
        self.project = nn.Linear(width, d_model, bias=project_bias) if narrow else None
        self.ln, self.padding = norm, padding
        self.at_embed = outside_blocks("hook_embed")
        self.at_positions = outside_blocks("hook_pos_embed")
        self.at_types = outside_blocks("hook_token_type_embed")
        self.at_full = outside_blocks("hook_full_embed")
        positions = () if n_positions is None else (self.at_positions,)
        types = () if n_types is None else (self.at_types,)
        self.sites = (self.at_embed, *positions, *types, *norm.sites, self.at_full)

    @override
    def embed(self, batch: Batch, tap: Tap) -> Resid:
        sums = tap(self.at_embed, F.embedding(batch.tokens, self.tokens))
        if self.positions is not None:
            learned = F.embedding(self._positions(batch), self.positions)
            if batch.real is not None:
                learned = learned * batch.real[:, :, None]  # a pad has no position
            sums = sums + tap(self.at_positions, learned)
        if self.types is not None:
            sums = sums + tap(
                self.at_types, F.embedding(_types(batch, len(self.types)), self.types)
            )
        full = self.ln.normalise(sums, tap)
        return tap(self.at_full, full if self.project is None else self.project(full))

    def _positions(self, batch: Batch) -> Int[Tensor, "batch pos"]:
        if self.padding is None:
            return batch.positions
        told = batch.tokens != self.padding
        told = told if batch.real is None else told & batch.real
        return told.cumsum(1) * told + self.padding


def table(count: int, width: int) -> nn.Parameter:
    """An empty table of embeddings."""
    return nn.Parameter(torch.empty(count, width))


def _types(batch: Batch, known: int) -> Int[Tensor, "batch pos"]:
    if batch.types is None:
        return torch.zeros_like(batch.tokens)
    if int(batch.types.max()) >= known:
        raise OptionError("token_types", f"in 0…{known - 1}", int(batch.types.max()))
    return batch.types


@final
class Unembedding(AnyHead, Tiled):
    """Logits of a normalised stream; of some vocabulary columns only, if asked.

    `scale` multiplies them before the site. With `cap`, logits x are cap tanh(x / cap), after it.
    With `d_embed` the stream is first projected to that width, which is the vocabulary's own.
    """

    def __init__(
        self,
        d_model: int,
        d_vocab: int,
        *,
        bias: bool = False,
        cap: float | None = None,
        scale: float | None = None,
        d_embed: int | None = None,
    ) -> None:
        super().__init__()
        self.cap, self.scale = cap, scale
        self.project = None if d_embed is None else nn.Linear(d_model, d_embed, bias=False)
        self.weight = nn.Parameter(torch.empty(d_vocab, d_embed or d_model))
        self.bias = nn.Parameter(torch.empty(d_vocab)) if bias else None
        self.at_logits = outside_blocks("hook_unembed")
        self.sites = (self.at_logits,)

    @override
    def matrices(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    @override
    def unembed(self, x: Resid, tap: Tap, vocabulary: Tensor | None) -> Logits:
        read = x if self.project is None else self.project(x)
        logits = self._uncapped(read, tap, vocabulary)
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()

    def _uncapped(self, x: Resid, tap: Tap, vocabulary: Tensor | None) -> Logits:
        if vocabulary is None:
            return tap(self.at_logits, self._all(x))
        if tap.wants(self.at_logits):  # an intervention there counts columns of the vocabulary
            return tap(self.at_logits, self._all(x))[..., vocabulary]
        bias = None if self.bias is None else self.bias[vocabulary]
        return self._scaled(F.linear(x, self.weight[vocabulary], bias))

    def _all(self, x: Resid) -> Logits:
        tiles = self.ready(x)
        if tiles is None:
            return self._scaled(F.linear(x, self.weight, self.bias))
        return self._scaled(tiles.multiply(x, self.bias))

    def _scaled(self, logits: Logits) -> Logits:
        return logits if self.scale is None else logits * self.scale
