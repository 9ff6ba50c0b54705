"""What a stack asks of a block; each way of arranging norms, attention and neurons is one."""

from abc import ABC, abstractmethod

from torch import nn

from workbench.core.axes import Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import Pass


class AnyBlock(nn.Module, ABC):
    """One layer of a stack: the stream in, the stream out, a tap at every site."""

    sites: Sites

    @abstractmethod
    def step(self, resid: Resid, tap: Tap, now: Pass) -> Resid:
        """The stream after this block."""
