"""Embedding and unembedding."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import Logits, Resid
from workbench.core.data import Batch
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import outside_blocks
from workbench.models.layers.linear import Tiled


@final
class Embedding(nn.Module):
    """Token embedding, times `scale`, with learned positions where `n_positions` is given."""

    def __init__(
        self,
        d_vocab: int,
        d_model: int,
        n_positions: int | None = None,
        *,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.tokens = nn.Parameter(torch.empty(d_vocab, d_model))
        learned = None if n_positions is None else nn.Parameter(torch.empty(n_positions, d_model))
        self.positions = learned
        self.at_embed = outside_blocks("hook_embed")
        self.at_positions = outside_blocks("hook_pos_embed")
        self.sites: Sites = (self.at_embed,)
        if learned is not None:
            self.sites = (self.at_embed, self.at_positions)

    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The residual stream before block 0."""
        found = F.embedding(batch.tokens, self.tokens)
        if self.scale is not None:  # rounded to the weights' dtype first, as models are trained
            found = found * torch.tensor(self.scale, dtype=found.dtype, device=found.device)
        resid = tap(self.at_embed, found)
        if self.positions is None:
            return resid
        learned = F.embedding(batch.positions, self.positions)
        if batch.real is not None:
            learned = learned * batch.real[:, :, None]  # a pad has no position
        return resid + tap(self.at_positions, learned)


@final
class Unembedding(Tiled):
    """Logits of a normalised stream; of some vocabulary columns only, if asked.

    `scale` multiplies them before the site. With `cap`, logits x are cap tanh(x / cap), after it.
    """

    def __init__(
        self,
        d_model: int,
        d_vocab: int,
        *,
        bias: bool = False,
        cap: float | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.cap, self.scale = cap, scale
        self.weight = nn.Parameter(torch.empty(d_vocab, d_model))
        self.bias = nn.Parameter(torch.empty(d_vocab)) if bias else None
        self.at_logits = outside_blocks("hook_unembed")
        self.sites: Sites = (self.at_logits,)

    @override
    def matrices(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def unembed(self, x: Resid, tap: Tap, vocabulary: Tensor | None) -> Logits:
        """The logits of all columns, or of `vocabulary` only."""
        logits = self._uncapped(x, tap, vocabulary)
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
