"""Cohere's Command R7B: parallel blocks; windowed layers turn, those that see all do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models import coheres, modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.attention import Attention
from workbench.models.layers.positions import rotate_neighbours
from workbench.models.transformer import Stack

READ = coheres.READ | {"sliding_window", "layer_types", "sliding_window_pattern"}
NAMES = modern.names(*coheres.PARTS)


@final
@dataclass(frozen=True)
class Cohere2(Family):
    """The Command R7B architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        every = config.count("sliding_window_pattern", default=4)
        windows = modern.windows(config, [(i + 1) % every != 0 for i in range(sizes.n_layers)])
        attentions = [_attention(i, sizes, config, window) for i, window in enumerate(windows)]
        return coheres.stack(config, sizes, attentions, rope)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return coheres.converted(weights, NAMES, stack)


def _attention(layer: int, sizes: Sizes, config: Config, window: int | None) -> Attention:
    bias = config.flag("attention_bias", default=False)
    return modern.heads(layer, sizes)(
        rotary=window is not None,
        bias=bias,
        out_bias=bias,
        turn=rotate_neighbours,
        window=window,
    )


FAMILY = Cohere2()
