"""What a family is: it builds a stack from a config and says which weight goes where.

A family is one file of `families/`, named like the config's `model_type`. Weight names are a
table, so nothing is guessed: what is missing, left over or misshapen is listed in one error.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from workbench.core.errors import WeightsError
from workbench.core.registry import discover
from workbench.models.config import Config
from workbench.models.transformer import Stack


class Family(ABC):
    """One architecture: sizes from the config, bricks chosen, names of weights."""

    @abstractmethod
    def build(self, config: Config) -> Stack:
        """An empty stack; called where new parameters take no memory.

        Raises:
            UnknownConfigKeyError: If the config has a key that would change the forward unheard.
        """

    @abstractmethod
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        """The checkpoint's weights under the stack's names, as views, nothing copied.

        Names it does not know stay as they are, so that the loader reports them.
        """


def renamed(
    weights: Mapping[str, Tensor], names: Mapping[str, str], n_layers: int, ignored: tuple[str, ...]
) -> dict[str, Tensor]:
    """Weights under new names, by a table whose `{}` stands for the layer.

    Names that end in one of `ignored` (buffers older checkpoints carry) are dropped; unknown names
    are kept, marked, for the loader to report.
    """
    table = {
        old.format(layer): new.format(layer)
        for old, new in names.items()
        for layer in (range(n_layers) if "{}" in old else (0,))
    }
    return {
        table.get(name, f"unknown:{name}"): tensor
        for name, tensor in weights.items()
        if not name.endswith(ignored)
    }


def without_copies(
    weights: Mapping[str, Tensor], name: str, copies: tuple[str, ...]
) -> dict[str, Tensor]:
    """The weights, with one tensor that has several names under the first of them only.

    Raises:
        WeightsError: If another name has other values.
    """
    one = next((weights[n] for n in (name, *copies) if n in weights), None)
    found = {other: weight for other, weight in weights.items() if other not in copies}
    for copy in copies:
        own = weights.get(copy)
        if (
            own is None
            or one is None
            or (own.data_ptr() == one.data_ptr() and own.shape == one.shape)
        ):
            continue
        if own.shape != one.shape or not torch.equal(own, one):
            raise WeightsError(f"{copy} is not {name}, which both stacks share.")
    return found if one is None else {**found, name: one}


def tie(found: dict[str, Tensor], stack: Stack, name: str = "unembed.weight") -> dict[str, Tensor]:
    """The weights with the embedding as unembedding, where the config says that they are one.

    Raises:
        WeightsError: If the checkpoint holds another matrix there.
    """
    if not stack.tied or "embed.tokens" not in found:
        return found
    embed, own = found["embed.tokens"], found.get(name)
    shared = own is None or (own.data_ptr() == embed.data_ptr() and own.shape == embed.shape)
    if not shared and own is not None and not torch.equal(own, embed):
        raise WeightsError(
            "The config says tie_word_embeddings = true, and the weights hold an unembedding that "
            "is not the embedding. Set it to false, or leave that weight out."
        )
    return {**found, name: embed}


FAMILIES = discover("workbench.models.families", "FAMILY", Family)
