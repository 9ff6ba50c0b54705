"""T5 (1.0, 1.1, Flan): an encoder and a decoder whose attention knows distances only."""

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
class T5(Family):
    """The T5 architecture."""

    @override
    def build(self, config: Config) -> TwoStacks:
        config.finish(READ | {"tie_word_embeddings", "scale_decoder_outputs"})
        untied = (
            config.values.get("tie_word_embeddings") is False
        )  # as in 1.1, which does not scale
        scale = config.flag("scale_decoder_outputs", default=not untied)
        return stacks(config, scale=scale)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return under_our_names(weights, stack.sizes.n_layers)


FAMILY = T5()
