"""Qwen3: Llama's blocks with a norm for each head's queries and keys; layers may be windowed."""

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

READ = modern.WINDOWED | {"head_dim", "attention_bias", "use_sliding_window", "max_window_layers"}
NAMES = modern.names(*modern.QKVO, *modern.GATED, *modern.PRE_NORMS, *modern.QK_NORMS)


@final
@dataclass(frozen=True)
class Qwen3(Family):
    """The Qwen3 architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope, d_head=128)
        windows = modern.late_windows(config, sizes.n_layers)
        blocks = [_block(layer, sizes, config, window) for layer, window in enumerate(windows)]
        return modern.stack(config, sizes, blocks, rope)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


def _block(layer: int, sizes: Sizes, config: Config, window: int | None) -> Block:
    bias = config.flag("attention_bias", default=False)
    attention = modern.heads(layer, sizes)(
        rotary=True,
        bias=bias,
        out_bias=bias,
        window=window,
        q_norm=modern.norm(config, sizes.d_head, "attn.q_norm", layer),
        k_norm=modern.norm(config, sizes.d_head, "attn.k_norm", layer),
    )
    return Block(
        in_block(layer),
        ln1=modern.norm(config, sizes.d_model, "ln1", layer),
        attn=attention,
        ln2=modern.norm(config, sizes.d_model, "ln2", layer),
        mlp=modern.gated(layer, sizes, config),
    )


FAMILY = Qwen3()
