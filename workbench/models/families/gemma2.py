"""Gemma 2: norms before and after each part, soft caps, every other layer windowed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.models import gemmas, modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.transformer import Stack

DEFAULTS: Mapping[str, object] = {"use_bidirectional_attention": None}
NAMES = modern.names(*modern.QKVO, *modern.GATED, *gemmas.SANDWICH)


@final
@dataclass(frozen=True)
class Gemma2(Family):
    """The Gemma 2 architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(gemmas.READ, DEFAULTS)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope, d_head=256)
        windows = modern.windows(config, [layer % 2 == 0 for layer in range(sizes.n_layers)])
        bias = config.flag("attention_bias", default=False)
        capped, scale = gemmas.cap(config, "attn_logit_softcapping", 50.0), gemmas.scale(config)
        attentions = [
            modern.heads(layer, sizes, scale=scale)(
                rotary=True, bias=bias, out_bias=bias, cap=capped, window=window
            )
            for layer, window in enumerate(windows)
        ]
        return Stack(
            sizes=sizes,
            embed=gemmas.embedding(sizes),
            blocks=[gemmas.block(i, sizes, config, attn) for i, attn in enumerate(attentions)],
            ln_final=gemmas.norm(config, sizes.d_model, "ln_final", None),
            unembed=gemmas.unembedding(sizes, config, 30.0),
            rotary=modern.turning(config, sizes, rope),
            tied=config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


FAMILY = Gemma2()
