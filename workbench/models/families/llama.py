"""Llama 1-3 and its relatives: RMSNorm, rotary positions, grouped keys and values, a gated MLP.

SmolLM2, TinyLlama and Vicuna are of this family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models import modern
from workbench.models.config import Config
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.transformer import Block, Stack

READ = modern.READ | frozenset("head_dim attention_bias mlp_bias pretraining_tp".split())
NAMES = modern.names(*modern.QKVO, *modern.GATED, *modern.PRE_NORMS)


@final
@dataclass(frozen=True)
class Llama(Family):
    """The Llama architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        blocks = [_block(layer, sizes, config) for layer in range(sizes.n_layers)]
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=blocks,
            ln_final=modern.norm(config, sizes.d_model, "ln_final", None),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=modern.turning(config, sizes, rope),
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, ("rotary_emb.inv_freq",))
        return tie(found, stack)


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    bias = config.flag("attention_bias", default=False)
    mlp_bias = config.flag("mlp_bias", default=False)
    return Block(
        in_block(layer),
        ln1=modern.norm(config, sizes.d_model, "ln1", layer),
        attn=modern.heads(layer, sizes)(rotary=True, bias=bias, out_bias=bias),
        ln2=modern.norm(config, sizes.d_model, "ln2", layer),
        mlp=modern.gated(layer, sizes, config, bias=mlp_bias),
    )


FAMILY = Llama()
