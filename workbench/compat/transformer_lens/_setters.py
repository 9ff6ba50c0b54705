"""The classic patch setters: each writes into the activation it is given, which is its own."""

from collections.abc import Sequence

from torch import Tensor

Index = Sequence[int]


def layer_pos_patch_setter(
    corrupted_activation: Tensor, index: Index, clean_activation: Tensor
) -> Tensor:
    """One position's vector; index [layer, pos]."""
    _, pos = index
    corrupted_activation[:, pos] = clean_activation[:, pos]
    return corrupted_activation


def layer_pos_head_vector_patch_setter(
    corrupted_activation: Tensor, index: Index, clean_activation: Tensor
) -> Tensor:
    """One head's vector at one position; index [layer, pos, head]."""
    _, pos, head = index
    corrupted_activation[:, pos, head] = clean_activation[:, pos, head]
    return corrupted_activation


def layer_head_vector_patch_setter(
    corrupted_activation: Tensor, index: Index, clean_activation: Tensor
) -> Tensor:
    """One head's vectors at all positions; index [layer, head]."""
    _, head = index
    corrupted_activation[:, :, head] = clean_activation[:, :, head]
    return corrupted_activation


def layer_head_pattern_patch_setter(
    corrupted_activation: Tensor, index: Index, clean_activation: Tensor
) -> Tensor:
    """One head's pattern; index [layer, head]."""
    _, head = index
    corrupted_activation[:, head] = clean_activation[:, head]
    return corrupted_activation


def layer_head_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Index, clean_activation: Tensor
) -> Tensor:
    """One head's attention from one position; index [layer, head, dest]."""
    _, head, dest = index
    corrupted_activation[:, head, dest] = clean_activation[:, head, dest]
    return corrupted_activation


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Index, clean_activation: Tensor
) -> Tensor:
    """One head's attention from one position to another; index [layer, head, dest, src]."""
    _, head, dest, src = index
    corrupted_activation[:, head, dest, src] = clean_activation[:, head, dest, src]
    return corrupted_activation
