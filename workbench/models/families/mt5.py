"""mT5: T5 1.1 in many languages; what the unembedding reads is never scaled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.models.config import Config
from workbench.models.encoder_decoder import TwoStacks
from workbench.models.families._t5 import READ, stacks, under_our_names
from workbench.models.family import Family
from workbench.models.transformer import Stack


@final
@dataclass(frozen=True)
class MT5(Family):
    """The mT5 architecture."""

    @override
    def build(self, config: Config) -> TwoStacks:
        config.finish(READ | {"tie_word_embeddings"})  # its weights alone say if they are
        return stacks(config, scale=False)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return under_our_names(weights, stack.sizes.n_layers)


FAMILY = MT5()
