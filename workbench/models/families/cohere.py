"""Cohere's Command R: parallel blocks, rotation of neighbours, q/k norms in some."""

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

READ = coheres.READ | {"use_qk_norm"}
NAMES = modern.names(*coheres.PARTS, *modern.QK_NORMS)


@final
@dataclass(frozen=True)
class Cohere(Family):
    """The Command R architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config, 500000.0)
        sizes = modern.sizes_of(config, rope)
        attentions = [_attention(layer, sizes, config) for layer in range(sizes.n_layers)]
        return coheres.stack(config, sizes, attentions, rope)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return coheres.converted(weights, NAMES, stack)


def _attention(layer: int, sizes: Sizes, config: Config) -> Attention:
    bias, normed = modern.flags(config, "attention_bias", "use_qk_norm")
    of_q, of_k = (sizes.n_heads, sizes.d_head), (sizes.n_key_value_heads, sizes.d_head)
    return modern.heads(layer, sizes)(
        rotary=True,
        bias=bias,
        out_bias=bias,
        turn=rotate_neighbours,
        q_norm=coheres.norm(config, of_q, "attn.q_norm", layer) if normed else None,
        k_norm=coheres.norm(config, of_k, "attn.k_norm", layer) if normed else None,
    )


FAMILY = Cohere()
