"""Embedding and unembedding."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.core.axes import Logits, Resid
from workbench.core.data import Batch
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import outside_blocks
from workbench.models.layers.linear import Tiles, multiply
from workbench.models.layers.norm import Norm


@final
class Embedding(nn.Module):
    """Token embedding, times `scale`, with learned positions where `n_positions` is given.

    With `d_embed` tokens are so wide, and projected to d_model; with `norm` they are normalised.
    All that is before `hook_embed`, which is what enters the stream.
    """

    def __init__(
        self,
        d_vocab: int,
        d_model: int,
        n_positions: int | None = None,
        *,
        scale: float | None = None,
        d_embed: int | None = None,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.ln = scale, norm
        self.tokens = nn.Parameter(torch.empty(d_vocab, d_embed or d_model))
        self.project = None if d_embed is None else nn.Linear(d_embed, d_model, bias=False)
        learned = None if n_positions is None else nn.Parameter(torch.empty(n_positions, d_model))
        self.positions = learned
        self.at_embed = outside_blocks("hook_embed")
        self.at_positions = outside_blocks("hook_pos_embed")
        before = () if norm is None else norm.sites
        after = () if learned is None else (self.at_positions,)
        self.sites: Sites = (*before, self.at_embed, *after)

    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The residual stream before block 0."""
        found = F.embedding(batch.tokens, self.tokens)
        if self.scale is not None:  # rounded to the weights' dtype first, as models are trained
            found = found * torch.tensor(self.scale, dtype=found.dtype, device=found.device)
        found = found if self.project is None else self.project(found)
        found = found if self.ln is None else self.ln.normalise(found, tap)
        resid = tap(self.at_embed, found)
        if self.positions is None:
            return resid
        learned = F.embedding(batch.positions, self.positions)
        if batch.real is not None:
            learned = learned * batch.real[:, :, None]  # a pad has no position
        return resid + tap(self.at_positions, learned)


@final
class Unembedding(nn.Module):
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
        self.tiles: Tiles | None = None
        self.project = None if d_embed is None else nn.Linear(d_model, d_embed, bias=False)
        self.weight = nn.Parameter(torch.empty(d_vocab, d_embed or d_model))
        self.bias = nn.Parameter(torch.empty(d_vocab)) if bias else None
        self.at_logits = outside_blocks("hook_unembed")
        self.sites: Sites = (self.at_logits,)

    def unembed(self, x: Resid, tap: Tap, vocabulary: Tensor | None) -> Logits:
        """The logits of all columns, or of `vocabulary` only."""
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
        return self._scaled(multiply(x, self.weight, self.bias, self.tiles))

    def _scaled(self, logits: Logits) -> Logits:
        return logits if self.scale is None else logits * self.scale
