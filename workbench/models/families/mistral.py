"""Mistral: Llama's blocks, whose layers may look back through a sliding window."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models import modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.context import in_block
from workbench.models.transformer import Block, Stack

READ = modern.READ | {"head_dim", "sliding_window"}
NAMES = modern.names(*modern.QKVO, *modern.GATED, *modern.PRE_NORMS)


@final
@dataclass(frozen=True)
class Mistral(Family):
    """The Mistral architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        blocks = [_block(layer, sizes, config) for layer in range(sizes.n_layers)]
        return modern.stack(config, sizes, blocks, rope)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    attend = modern.heads(layer, sizes)
    return Block(
        in_block(layer),
        ln1=modern.norm(config, sizes.d_model, "ln1", layer),
        attn=attend(rotary=True, bias=False, out_bias=False, window=modern.width(config)),
        ln2=modern.norm(config, sizes.d_model, "ln2", layer),
        mlp=modern.gated(layer, sizes, config),
    )


FAMILY = Mistral()
