"""RoBERTa: BERT trained longer, without next sentences; positions count from the padding's id."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
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
    "max_position_embeddings type_vocab_size layer_norm_eps tie_word_embeddings pad_token_id "
    "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout".split()  # in training
)
DEFAULTS = MappingProxyType({"position_embedding_type": "absolute"})
BODY = encoder.bert_body("roberta")
HEADS = (
    *encoder.both({"lm_head.dense": "unembed.dense"}).items(),
    *encoder.both({"lm_head.layer_norm": "unembed.ln"}).items(),
    ("lm_head.decoder.weight", "unembed.words.weight"),
    ("lm_head.decoder.bias", "unembed.words.bias"),
    ("lm_head.bias", "unembed.words.bias"),  # the same, in older checkpoints
    *encoder.both({"classifier.dense": "unembed.pooler.dense"}).items(),
    *encoder.both({"classifier.out_proj": "unembed.labels"}).items(),
    *encoder.both({"classifier": "unembed.labels"}).items(),
    *encoder.both({"roberta.pooler.dense": "unembed.pooler.dense"}).items(),
)


@final
@dataclass(frozen=True)
class Roberta(Family):
    """The RoBERTa architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        kind, padding = encoder.kind_of(config), _padding(config)
        n_positions = config.count("max_position_embeddings")
        sizes = encoder.sizes_of(config, n_positions - padding - 1, encoder.output_of(kind, config))
        act, eps = config.activation("hidden_act", "gelu"), config.number("layer_norm_eps", 1e-12)
        return Stack(
            sizes=sizes,
            embed=NormedEmbedding(
                sizes.d_vocab,
                sizes.d_model,
                encoder.norm_of(sizes.d_model, eps, "embed.ln"),
                n_positions=n_positions,
                n_types=config.count("type_vocab_size", default=2),
                padding=padding,
            ),
            blocks=[encoder.block_of(layer, sizes, act, eps) for layer in range(sizes.n_layers)],
            ln_final=NoNorm(),
            unembed=_head(kind, sizes, eps),
            rotary=None,
            causal=False,
            tied=kind == encoder.MASKED and config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return encoder.matched(weights, stack, BODY, HEADS, prefix="roberta")


def _padding(config: Config) -> int:
    """The id of pads, after which positions count.

    Raises:
        OptionError: If it is none, or leaves no positions.
    """
    padding: object = config.values.get("pad_token_id", 1)
    longest = config.count("max_position_embeddings")
    if not isinstance(padding, int) or not 0 <= padding < longest - 1:
        allowed = f"an id in 0…{longest - 2}: positions count from it"
        raise OptionError("roberta: config key 'pad_token_id'", allowed, padding)
    return padding


def _head(kind: str, sizes: Sizes, eps: float) -> AnyHead:
    if kind != encoder.MASKED:
        pooler = Pooler(sizes.d_model, sizes.d_model, torch.tanh)
        return encoder.head_of(kind, sizes, pooler, pooler)
    norm = encoder.norm_of(sizes.d_model, eps, "mlm_head.ln")
    return MaskedHead(sizes.d_model, sizes.d_model, sizes.d_vocab, F.gelu, norm)


FAMILY = Roberta()
