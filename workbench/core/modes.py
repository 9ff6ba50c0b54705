"""The two autograd modes a pass runs in, whatever mode the caller is in.

Notable: under `torch.inference_mode` tensors have no version counter and no graph, so that writes
would go unseen and gradients be zero without a word. A pass leaves it, its caller does not notice.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch

# Decorates whoever makes tensors that outlive the call: those of inference mode have no gradients.
outside_inference = torch.inference_mode(mode=False)


@contextmanager
def forward_only() -> Generator[None]:
    """Without a graph."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


@contextmanager
def with_graph() -> Generator[None]:
    """With a graph."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield
