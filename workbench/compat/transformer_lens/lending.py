"""Weights that a facade shows and another model may hold too: copied before anybody can write.

Notable: a run reads the shared tensors and costs nothing. What hands a tensor out (`W_E`,
`blocks[0].attn.W_Q`, `state_dict()`, `parameters()`) makes that one the facade's own first.
"""

from threading import Lock
from typing import final

import torch
from torch import Tensor, nn

from workbench.models.transformer import Stack


@final
class Loan:
    """Which weights of a stack are still another's; each is copied when it is first handed out."""

    def __init__(self, stack: Stack | None = None) -> None:
        """All of the stack's; without one, none are."""
        modules = () if stack is None else tuple(stack.modules())
        self._lent = {
            (id(module), name)
            for module in modules
            for name, _ in module.named_parameters(recurse=False)
        }
        self._stack, self._lock = stack, Lock()  # the stack, so that its modules keep their ids

    def own(self, module: nn.Module, name: str) -> nn.Parameter:
        """The module's weight of that name; from now on nobody else's."""
        with self._lock:
            if (id(module), name) in self._lent:
                old = module.get_parameter(name)
                new = nn.Parameter(_copied(old.detach()), requires_grad=old.requires_grad)
                module.register_parameter(name, new)
                self._lent.discard((id(module), name))
        return module.get_parameter(name)

    def own_all(self) -> None:
        """The same for every weight; costs their memory again."""
        for module in () if self._stack is None else self._stack.modules():
            for name, _ in tuple(module.named_parameters(recurse=False)):
                self.own(module, name)


def _copied(weight: Tensor) -> Tensor:
    """A copy; a transposed matrix stays one, so that products go on rounding as they did."""
    if weight.ndim == 2 and weight.stride(0) < weight.stride(1):
        return weight.t().clone(memory_format=torch.contiguous_format).t()
    return weight.clone()
