"""What a stack asks of its last part: what it says of the stream after the blocks."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from workbench.core.axes import Logits, Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap


class AnyHead(nn.Module, ABC):
    """What is said at each position; in columns of the vocabulary, labels, or the stream itself."""

    sites: Sites

    @abstractmethod
    def unembed(self, x: Resid, tap: Tap, vocabulary: Tensor | None) -> Logits:
        """All columns, or those of `vocabulary` only."""
