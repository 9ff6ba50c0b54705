"""What a stack of an encoder–decoder model begins with: tokens, positions, perhaps a norm."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from workbench.core.axes import Resid
from workbench.core.data import Batch
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import At
from workbench.models.layers.norm import Norm


@final
class Entrance(nn.Module):
    """norm(scale E[token] + P[position + offset]); the matrix E is the model's, for both stacks."""

    def __init__(
        self,
        at: At,
        d_model: int,
        *,
        n_positions: int | None = None,
        offset: int = 0,
        scale: float | None = None,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.offset, self.scale, self.norm = offset, scale, norm
        learned = None
        if n_positions is not None:
            learned = nn.Parameter(torch.empty(n_positions + offset, d_model))
        self.positions = learned
        self.at_embed, self.at_positions = at("hook_embed"), at("hook_pos_embed")
        positions = () if learned is None else (self.at_positions,)
        self.sites: Sites = (self.at_embed, *positions, *(() if norm is None else norm.sites))

    def begin(self, tokens: Float[Tensor, "d_vocab d_model"], batch: Batch, tap: Tap) -> Resid:
        """The stream of these tokens before the first block."""
        resid = F.embedding(batch.tokens, tokens)
        resid = tap(self.at_embed, resid if self.scale is None else resid * self.scale)
        if self.positions is not None:
            learned = F.embedding(batch.positions + self.offset, self.positions)
            if batch.real is not None:
                learned = learned * batch.real[:, :, None]  # a pad has no position
            resid = resid + tap(self.at_positions, learned)
        return resid if self.norm is None else self.norm.normalise(resid, tap)
