"""OLMo 2: norms after attention and neurons, not before; q/k norms over all heads together."""

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
from workbench.models.layers.norm import NoNorm, OverHeadsRMSNorm
from workbench.models.layers.sandwich import SandwichBlock
from workbench.models.transformer import Stack

READ = modern.READ | {"head_dim", "attention_bias"}
NAMES = modern.names(
    *modern.QKVO,
    *modern.GATED,
    *modern.QK_NORMS,
    ("post_attention_layernorm", "ln1_post"),
    ("post_feedforward_layernorm", "ln2_post"),
)


@final
@dataclass(frozen=True)
class OLMo2(Family):
    """The OLMo 2 architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        blocks = [_block(layer, sizes, config) for layer in range(sizes.n_layers)]
        return modern.stack(config, sizes, blocks, rope, eps=1e-5)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


def _block(layer: int, sizes: Sizes, config: Config) -> SandwichBlock:
    at, bias = in_block(layer), config.flag("attention_bias", default=False)
    eps, d_head = config.number("rms_norm_eps", 1e-5), sizes.d_head
    attention = modern.heads(layer, sizes)(
        rotary=True,
        bias=bias,
        out_bias=bias,
        q_norm=OverHeadsRMSNorm(sizes.n_heads * d_head, eps, at, "attn.q_norm"),
        k_norm=OverHeadsRMSNorm(sizes.n_key_value_heads * d_head, eps, at, "attn.k_norm"),
    )
    return SandwichBlock(
        at,
        ln1=NoNorm(),
        attn=attention,
        ln1_post=modern.norm(config, sizes.d_model, "ln1_post", layer, 1e-5),
        ln2=NoNorm(),
        mlp=modern.gated(layer, sizes, config),
        ln2_post=modern.norm(config, sizes.d_model, "ln2_post", layer, 1e-5),
    )


FAMILY = OLMo2()
