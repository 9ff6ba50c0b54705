"""Granite: Llama's blocks with multipliers of embeddings, scores, what is added, and logits."""

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
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.norm import Times
from workbench.models.layers.sandwich import SandwichBlock
from workbench.models.transformer import Stack

READ = modern.READ | frozenset(
    "head_dim attention_bias mlp_bias embedding_multiplier logits_scaling residual_multiplier "
    "attention_multiplier".split()
)
NAMES = modern.names(*modern.QKVO, *modern.GATED, *modern.PRE_NORMS)


@final
@dataclass(frozen=True)
class Granite(Family):
    """The Granite architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        scale, divisor = (config.number(f, 1.0) for f in ("embedding_multiplier", "logits_scaling"))
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model, scale=scale),
            blocks=[_block(layer, sizes, config) for layer in range(sizes.n_layers)],
            ln_final=modern.norm(config, sizes.d_model, "ln_final", None),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab, scale=1.0 / divisor),
            rotary=modern.turning(config, sizes, rope),
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


def _block(layer: int, sizes: Sizes, config: Config) -> SandwichBlock:
    """`hook_attn_out` and `hook_mlp_out` are what is added, after the multiplier."""
    bias, mlp_bias = modern.flags(config, "attention_bias", "mlp_bias")
    added = Times(config.number("residual_multiplier", 1.0))
    attend = modern.heads(layer, sizes, scale=config.number("attention_multiplier", 1.0))
    return SandwichBlock(
        in_block(layer),
        ln1=modern.norm(config, sizes.d_model, "ln1", layer),
        attn=attend(rotary=True, bias=bias, out_bias=bias),
        ln1_post=added,
        ln2=modern.norm(config, sizes.d_model, "ln2", layer),
        mlp=modern.gated(layer, sizes, config, bias=mlp_bias),
        ln2_post=added,
    )


FAMILY = Granite()
