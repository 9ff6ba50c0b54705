"""What the Coheres share: parallel blocks, one LayerNorm without a bias, a scale of the logits.

Attention and neurons read through the same norm; it stands here twice, with the same weight, so
that each has its own sites.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from workbench.core.protocols import Sizes
from workbench.models import modern
from workbench.models.config import Config
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.norm import UnbiasedLayerNorm
from workbench.models.transformer import ParallelBlock, Stack

READ = (modern.READ - {"rms_norm_eps"}) | frozenset(
    "head_dim attention_bias layer_norm_eps logit_scale".split()
)
PARTS = (*modern.QKVO, *modern.GATED, ("input_layernorm", "ln1"))


def norm(
    config: Config, shape: int | tuple[int, int], name: str, layer: int | None
) -> UnbiasedLayerNorm:
    """A norm of a block, or after all of them."""
    return UnbiasedLayerNorm(
        shape, config.number("layer_norm_eps", 1e-5), modern.place(layer), name
    )


def stack(
    config: Config, sizes: Sizes, attentions: Sequence[Attention], rope: Mapping[str, Any]
) -> Stack:
    """A stack of parallel blocks around these."""
    scale = config.number("logit_scale", 0.0625)
    return Stack(
        sizes=sizes,
        embed=Embedding(sizes.d_vocab, sizes.d_model),
        blocks=[_block(layer, sizes, config, attn) for layer, attn in enumerate(attentions)],
        ln_final=norm(config, sizes.d_model, "ln_final", None),
        unembed=Unembedding(sizes.d_model, sizes.d_vocab, scale=scale),
        rotary=modern.turning(config, sizes, rope, neighbours=True),
        tied=config.flag("tie_word_embeddings", default=True),
    )


def converted(
    weights: Mapping[str, Tensor], table: Mapping[str, str], stack: Stack
) -> dict[str, Tensor]:
    """A checkpoint's weights under the stack's names, as views."""
    found = modern.converted(weights, table, stack)
    norms = {name: weight for name, weight in found.items() if name.endswith(".ln1.weight")}
    return {**found, **{name.replace(".ln1.", ".ln2."): weight for name, weight in norms.items()}}


def _block(layer: int, sizes: Sizes, config: Config, attn: Attention) -> ParallelBlock:
    return ParallelBlock(
        in_block(layer),
        ln1=norm(config, sizes.d_model, "ln1", layer),
        attn=attn,
        ln2=norm(config, sizes.d_model, "ln2", layer),
        mlp=modern.gated(layer, sizes, config),
    )
