"""A stack like another, of which some weights and parts are replaced and all others shared."""

import copy

from torch import Tensor, nn

from workbench.models.transformer import Block, Stack


def shared(stack: Stack) -> Stack:
    """A stack of its own whose weights are the very tensors of the other; costs no memory."""
    memo: dict[int, object] = {id(weight): weight for weight in stack.parameters()}
    return copy.deepcopy(stack, memo)


def cloned(stack: Stack) -> Stack:
    """A stack with weights of its own."""
    return copy.deepcopy(stack)


def frozen(value: Tensor) -> nn.Parameter:
    """A weight that takes no gradient."""
    return nn.Parameter(value.detach(), requires_grad=False)


def put(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a linear map other weights; only for a stack that `shared` has made."""
    linear.weight = frozen(weight)
    if bias is not None:
        linear.bias = frozen(bias)


def blocks_of(stack: Stack) -> tuple[Block, ...]:
    """Its blocks, typed."""
    return tuple(block for block in stack.blocks if isinstance(block, Block))


def bias_of(linear: nn.Linear) -> Tensor | None:
    """A linear map's bias, where it has one."""
    return dict(linear.named_parameters()).get("bias")
