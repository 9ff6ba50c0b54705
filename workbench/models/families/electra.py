"""ELECTRA: BERT's blocks; a discriminator that tells replaced tokens, and a generator of words."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Output, Sizes
from workbench.models import encoder_family as encoder
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.embed import NormedEmbedding
from workbench.models.layers.head import AnyHead
from workbench.models.layers.heads import Classifier, MaskedHead, Pooler
from workbench.models.layers.norm import NoNorm
from workbench.models.transformer import Stack

READ = frozenset(
    "vocab_size embedding_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "hidden_act max_position_embeddings type_vocab_size layer_norm_eps tie_word_embeddings "
    "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout "  # in training
    "summary_type summary_use_proj summary_activation summary_last_dropout".split()  # of choices
)
DEFAULTS = MappingProxyType({"position_embedding_type": "absolute"})
KINDS = (*encoder.KINDS, encoder.PRETRAINING)
BODY = {
    **encoder.bert_body("electra"),
    **encoder.both({"electra.embeddings_project": "embed.project"}),
}
HEADS = (
    *encoder.both({"generator_predictions.dense": "unembed.dense"}).items(),
    *encoder.both({"generator_predictions.LayerNorm": "unembed.ln"}).items(),
    *encoder.both({"generator_lm_head": "unembed.words"}).items(),
    *encoder.both({"discriminator_predictions.dense": "unembed.pooler.dense"}).items(),
    *encoder.both({"discriminator_predictions.dense_prediction": "unembed.labels"}).items(),
    *encoder.both({"classifier.dense": "unembed.pooler.dense"}).items(),
    *encoder.both({"classifier.out_proj": "unembed.labels"}).items(),
    *encoder.both({"classifier": "unembed.labels"}).items(),
)


@final
@dataclass(frozen=True)
class Electra(Family):
    """The ELECTRA architecture; `ForPreTraining` is the discriminator."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        kind = encoder.kind_of(config, KINDS)
        n_ctx = config.count("max_position_embeddings")
        sizes = encoder.sizes_of(config, n_ctx, _output(kind, config))
        act, eps = config.activation("hidden_act", "gelu"), config.number("layer_norm_eps", 1e-12)
        d_embed = config.count("embedding_size", default=128)
        return Stack(
            sizes=sizes,
            embed=NormedEmbedding(
                sizes.d_vocab,
                sizes.d_model,
                encoder.norm_of(d_embed, eps, "embed.ln"),
                n_positions=n_ctx,
                n_types=config.count("type_vocab_size", default=2),
                d_embed=None if d_embed == sizes.d_model else d_embed,
            ),
            blocks=[encoder.block_of(layer, sizes, act, eps) for layer in range(sizes.n_layers)],
            ln_final=NoNorm(),
            unembed=_head(kind, sizes, config, d_embed),
            rotary=None,
            causal=False,
            tied=kind == encoder.MASKED and config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return encoder.matched(weights, stack, BODY, HEADS, prefix="electra")


def _output(kind: str, config: Config) -> Output:
    replaced = Output("labels", "asked", ("replaced",))
    return replaced if kind == encoder.PRETRAINING else encoder.output_of(kind, config)


def _head(kind: str, sizes: Sizes, config: Config, d_embed: int) -> AnyHead:
    if kind == encoder.MASKED:
        eps = config.number("layer_norm_eps", 1e-12)
        norm = encoder.norm_of(d_embed, eps, "mlm_head.ln")
        return MaskedHead(sizes.d_model, d_embed, sizes.d_vocab, F.gelu, norm)
    if kind == encoder.PRETRAINING:
        act = config.activation("hidden_act", "gelu")
        return Classifier(sizes.d_model, 1, Pooler(sizes.d_model, sizes.d_model, act))
    return encoder.head_of(kind, sizes, Pooler(sizes.d_model, sizes.d_model, F.gelu), None)


FAMILY = Electra()
