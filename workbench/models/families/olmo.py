"""OLMo: Llama's blocks with LayerNorms without weights; queries, keys, values may be clipped."""

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
from workbench.models.layers.norm import PlainLayerNorm
from workbench.models.transformer import Block, Stack

READ = (modern.READ - {"rms_norm_eps"}) | {"head_dim", "attention_bias", "clip_qkv"}
NAMES = modern.names(*modern.QKVO, *modern.GATED)
EPS = 1e-5  # no config says so; it is part of the architecture


@final
@dataclass(frozen=True)
class OLMo(Family):
    """The first OLMo architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, config) for layer in range(sizes.n_layers)],
            ln_final=PlainLayerNorm(EPS, modern.place(None), "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=modern.turning(config, sizes, rope),
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    at, bias = in_block(layer), config.flag("attention_bias", default=False)
    clip = None if config.values.get("clip_qkv") is None else config.number("clip_qkv", 0.0)
    return Block(
        at,
        ln1=PlainLayerNorm(EPS, at, "ln1"),
        attn=modern.heads(layer, sizes)(rotary=True, bias=bias, out_bias=bias, clip=clip),
        ln2=PlainLayerNorm(EPS, at, "ln2"),
        mlp=modern.gated(layer, sizes, config),
    )


FAMILY = OLMo()
