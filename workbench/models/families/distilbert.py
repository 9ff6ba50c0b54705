"""DistilBERT: half of BERT's blocks, without token types and pooler."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    "vocab_size dim n_layers n_heads hidden_dim activation max_position_embeddings "
    "tie_word_embeddings tie_weights_ sinusoidal_pos_embds output_past "  # tables are stored
    "dropout attention_dropout qa_dropout seq_classif_dropout".split()  # in training
)
EPS = 1e-12
BODY = {
    "distilbert.embeddings.word_embeddings.weight": "embed.tokens",
    "distilbert.embeddings.position_embeddings.weight": "embed.positions",
    **encoder.both({"distilbert.embeddings.LayerNorm": "embed.ln"}),
    **encoder.in_layers(
        "distilbert.transformer.layer",
        {
            "attention.q_lin": "attn.q",
            "attention.k_lin": "attn.k",
            "attention.v_lin": "attn.v",
            "attention.out_lin": "attn.o",
            "sa_layer_norm": "ln1",
            "ffn.lin1": "mlp.up",
            "ffn.lin2": "mlp.down",
            "output_layer_norm": "ln2",
        },
    ),
}
HEADS = (
    *encoder.both({"vocab_transform": "unembed.dense"}).items(),
    *encoder.both({"vocab_layer_norm": "unembed.ln"}).items(),
    *encoder.both({"vocab_projector": "unembed.words"}).items(),
    *encoder.both({"pre_classifier": "unembed.pooler.dense"}).items(),
    *encoder.both({"classifier": "unembed.labels"}).items(),
)


@final
@dataclass(frozen=True)
class DistilBert(Family):
    """The DistilBERT architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        kind = encoder.kind_of(config)
        sizes, act = _sizes(config, kind), config.activation("activation", "gelu")
        return Stack(
            sizes=sizes,
            embed=NormedEmbedding(
                sizes.d_vocab,
                sizes.d_model,
                encoder.norm_of(sizes.d_model, EPS, "embed.ln"),
                n_positions=sizes.n_ctx,
            ),
            blocks=[encoder.block_of(layer, sizes, act, EPS) for layer in range(sizes.n_layers)],
            ln_final=NoNorm(),
            unembed=_head(kind, sizes, config),
            rotary=None,
            causal=False,
            tied=kind == encoder.MASKED and config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return encoder.matched(weights, stack, BODY, HEADS, prefix="distilbert")


def _sizes(config: Config, kind: str) -> Sizes:
    d_model, n_heads = config.count("dim"), config.count("n_heads")
    return Sizes(
        n_layers=config.layers("n_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=encoder.d_head_of(config, d_model, n_heads),
        d_mlp=config.count("hidden_dim"),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings"),
        output=encoder.output_of(kind, config),
    )


def _head(kind: str, sizes: Sizes, config: Config) -> AnyHead:
    if kind != encoder.MASKED:
        return encoder.head_of(kind, sizes, Pooler(sizes.d_model, sizes.d_model, torch.relu), None)
    norm, act = (
        encoder.norm_of(sizes.d_model, EPS, "mlm_head.ln"),
        config.activation("activation", "gelu"),
    )
    return MaskedHead(sizes.d_model, sizes.d_model, sizes.d_vocab, act, norm)


FAMILY = DistilBert()
