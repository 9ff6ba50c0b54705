"""Gemma 1: scaled embeddings, norms times 1 + weight, one wide head size, tied unembedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models import gemmas, modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Unembedding
from workbench.models.layers.mlp import GatedMLP
from workbench.models.transformer import Block, Stack

READ = modern.READ | {"head_dim", "attention_bias", "hidden_activation"}  # the last: by nobody
DEFAULTS: Mapping[str, object] = {"use_bidirectional_attention": None}
NAMES = modern.names(*modern.QKVO, *modern.GATED, *modern.PRE_NORMS)


@final
@dataclass(frozen=True)
class Gemma(Family):
    """The first Gemma architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope, d_head=256)
        return Stack(
            sizes=sizes,
            embed=gemmas.embedding(sizes),
            blocks=[_block(layer, sizes, config) for layer in range(sizes.n_layers)],
            ln_final=gemmas.norm(config, sizes.d_model, "ln_final", None),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=modern.turning(config, sizes, rope),
            tied=config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    bias, at = config.flag("attention_bias", default=False), in_block(layer)
    act = gemmas.activation(config, "hidden_act")
    return Block(
        at,
        ln1=gemmas.norm(config, sizes.d_model, "ln1", layer),
        attn=modern.heads(layer, sizes)(rotary=True, bias=bias, out_bias=bias),
        ln2=gemmas.norm(config, sizes.d_model, "ln2", layer),
        mlp=GatedMLP(sizes.d_model, sizes.d_mlp, act, at, bias=False),
    )


FAMILY = Gemma()
