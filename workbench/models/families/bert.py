"""BERT: post-norm blocks that read both ways, learned positions and token types, a masked head.

MiniLM and other sentence encoders are of this family, without a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models import encoder_family as encoder
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.embed import NormedEmbedding
from workbench.models.layers.head import AnyHead
from workbench.models.layers.heads import MaskedHead, Pooler
from workbench.models.layers.norm import NoNorm
from workbench.models.transformer import Stack

READ = frozenset(
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "max_position_embeddings type_vocab_size layer_norm_eps tie_word_embeddings "
    "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout".split()  # in training
)
DEFAULTS = MappingProxyType({"position_embedding_type": "absolute"})
PRETRAINING = encoder.PRETRAINING
KINDS = (*encoder.KINDS, PRETRAINING, "NextSentencePrediction")
BODY = encoder.bert_body("bert")
HEADS = (
    *encoder.both({"cls.predictions.transform.dense": "unembed.dense"}).items(),
    *encoder.both({"cls.predictions.transform.LayerNorm": "unembed.ln"}).items(),
    ("cls.predictions.decoder.weight", "unembed.words.weight"),
    ("cls.predictions.decoder.bias", "unembed.words.bias"),
    ("cls.predictions.bias", "unembed.words.bias"),  # the same, in older checkpoints
    *encoder.both({"cls.seq_relationship": "unembed.next"}).items(),
    *encoder.both({"cls.seq_relationship": "unembed.labels"}).items(),
    *encoder.both({"bert.pooler.dense": "unembed.pooler.dense"}).items(),
    *encoder.both({"classifier": "unembed.labels"}).items(),
)


@final
@dataclass(frozen=True)
class Bert(Family):
    """The BERT architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        kind, n_ctx = encoder.kind_of(config, KINDS), config.count("max_position_embeddings")
        sizes = encoder.sizes_of(config, n_ctx, encoder.output_of(kind, config))
        act, eps = config.activation("hidden_act", "gelu"), config.number("layer_norm_eps", 1e-12)
        return Stack(
            sizes=sizes,
            embed=NormedEmbedding(
                sizes.d_vocab,
                sizes.d_model,
                encoder.norm_of(sizes.d_model, eps, "embed.ln"),
                n_positions=n_ctx,
                n_types=config.count("type_vocab_size", default=2),
            ),
            blocks=[encoder.block_of(layer, sizes, act, eps) for layer in range(sizes.n_layers)],
            ln_final=NoNorm(),
            unembed=_head(kind, sizes, config, eps),
            rotary=None,
            causal=False,
            tied=kind in (encoder.MASKED, PRETRAINING)
            and config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return encoder.matched(weights, stack, BODY, HEADS, prefix="bert")


def _head(kind: str, sizes: Sizes, config: Config, eps: float) -> AnyHead:
    pooler = Pooler(sizes.d_model, sizes.d_model, torch.tanh)
    if kind not in (encoder.MASKED, PRETRAINING):
        return encoder.head_of(kind, sizes, pooler, pooler)
    return MaskedHead(
        sizes.d_model,
        sizes.d_model,
        sizes.d_vocab,
        config.activation("hidden_act", "gelu"),
        encoder.norm_of(sizes.d_model, eps, "mlm_head.ln"),
        pooler=pooler if kind == PRETRAINING else None,
    )


FAMILY = Bert()
