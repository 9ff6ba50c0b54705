"""ALBERT: BERT with narrow embeddings, whose layers share their weights.

Notable: each layer has its own sites, and the very weights of the others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from workbench.models.layers.post_norm import PostNormBlock
from workbench.models.transformer import Stack

READ = frozenset(
    "vocab_size embedding_size hidden_size num_hidden_layers num_hidden_groups inner_group_num "
    "num_attention_heads intermediate_size hidden_act max_position_embeddings type_vocab_size "
    "layer_norm_eps tie_word_embeddings hidden_dropout_prob attention_probs_dropout_prob "
    "classifier_dropout_prob".split()  # dropouts act in training
)
DEFAULTS = MappingProxyType(
    {
        "position_embedding_type": "absolute",
        "down_scale_factor": 1,
        "gap_size": 0,
        "net_structure_type": 0,
        "layers_to_keep": [],
        "num_memory_blocks": 0,
    }
)
LAYER = {
    "attention.query": "attn.q",
    "attention.key": "attn.k",
    "attention.value": "attn.v",
    "attention.dense": "attn.o",
    "attention.LayerNorm": "ln1",
    "ffn": "mlp.up",
    "ffn_output": "mlp.down",
    "full_layer_layer_norm": "ln2",
}
SHARED = "encoder.albert_layer_groups"
_PLACE = re.compile(r"([0-9]{1,4}\.albert_layers\.[0-9]{1,4})\.")
BODY = {
    **encoder.bert_body("albert"),
    **encoder.both({"albert.encoder.embedding_hidden_mapping_in": "embed.project"}),
    **encoder.in_layers("albert.encoder.layer", LAYER),
}
HEADS = (
    *encoder.both({"predictions.dense": "unembed.dense"}).items(),
    *encoder.both({"predictions.LayerNorm": "unembed.ln"}).items(),
    ("predictions.decoder.weight", "unembed.words.weight"),
    ("predictions.decoder.bias", "unembed.words.bias"),
    ("predictions.bias", "unembed.words.bias"),  # the same, in older checkpoints
    *encoder.both({"sop_classifier.classifier": "unembed.next"}).items(),
    *encoder.both({"albert.pooler": "unembed.pooler.dense"}).items(),
    *encoder.both({"classifier": "unembed.labels"}).items(),
)


@final
@dataclass(frozen=True)
class Albert(Family):
    """The ALBERT architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        kind = encoder.kind_of(config, (*encoder.KINDS, encoder.PRETRAINING))
        n_ctx, d_embed = config.count("max_position_embeddings"), config.count("embedding_size")
        sizes = _sizes(config, kind, n_ctx)
        act, eps = (
            config.activation("hidden_act", "gelu_new"),
            config.number("layer_norm_eps", 1e-12),
        )
        blocks = [encoder.block_of(layer, sizes, act, eps) for layer in range(sizes.n_layers)]
        return Stack(
            sizes=sizes,
            embed=NormedEmbedding(
                sizes.d_vocab,
                sizes.d_model,
                encoder.norm_of(d_embed, eps, "embed.ln"),
                n_positions=n_ctx,
                n_types=config.count("type_vocab_size", default=2),
                d_embed=d_embed,
            ),
            blocks=_sharing(blocks, config),
            ln_final=NoNorm(),
            unembed=_head(kind, sizes, config, d_embed),
            rotary=None,
            causal=False,
            tied=kind in (encoder.MASKED, encoder.PRETRAINING)
            and config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        own = {name: t for name, t in weights.items() if SHARED not in name}
        shared = {
            name.rpartition(f"{SHARED}.")[2]: t for name, t in weights.items() if SHARED in name
        }
        used = dict.fromkeys(place for name in sorted(shared) if (place := _place(name)))
        kinds = _kinds(stack)
        places = dict(zip(dict.fromkeys(kinds), used, strict=False))
        taken = {place for kind in kinds if (place := places.get(kind))}
        for layer, kind in enumerate(kinds):
            start = f"{places.get(kind)}."
            for name in [name for name in shared if name.startswith(start)]:
                own[f"albert.encoder.layer.{layer}.{name.removeprefix(start)}"] = shared[name]
        own |= {name: t for name, t in shared.items() if _place(name) not in taken}
        return encoder.matched(own, stack, BODY, HEADS, prefix="albert")


def _sizes(config: Config, kind: str, n_ctx: int) -> Sizes:
    """The sizes, with the inner layers of each layer counted as layers."""
    sizes = encoder.sizes_of(config, n_ctx, encoder.output_of(kind, config))
    return replace(sizes, n_layers=sizes.n_layers * config.count("inner_group_num", default=1))


def _place(name: str) -> str | None:
    """Where a shared weight is, "0.albert_layers.0" of group 0; None for another name."""
    found = _PLACE.match(name)
    return None if found is None else found.group(1)


def _sharing(blocks: list[PostNormBlock], config: Config) -> list[PostNormBlock]:
    """The blocks with the very parameters of the first of their kind, by group and inner layer."""
    inner = config.count("inner_group_num", default=1)
    groups, layers = config.count("num_hidden_groups", default=1), len(blocks) // inner
    firsts: dict[tuple[int, int], PostNormBlock] = {}
    for number, block in enumerate(blocks):
        layer, part = divmod(number, inner)
        first = firsts.setdefault((int(layer / (layers / groups)), part), block)
        for own, shared in zip(block.modules(), first.modules(), strict=True):
            for name, weight in shared.named_parameters(recurse=False):
                own.register_parameter(name, weight)
    return blocks


def _kinds(stack: Stack) -> list[int]:
    """Of each layer, what tells apart those which do not share weights."""
    named = dict(stack.named_parameters(remove_duplicate=False))
    return [id(named[f"blocks.{layer}.mlp.up.weight"]) for layer in range(stack.sizes.n_layers)]


def _head(kind: str, sizes: Sizes, config: Config, d_embed: int) -> AnyHead:
    pooler = Pooler(sizes.d_model, sizes.d_model, torch.tanh)
    if kind not in (encoder.MASKED, encoder.PRETRAINING):
        return encoder.head_of(kind, sizes, pooler, pooler)
    return MaskedHead(
        sizes.d_model,
        d_embed,
        sizes.d_vocab,
        config.activation("hidden_act", "gelu_new"),
        encoder.norm_of(d_embed, config.number("layer_norm_eps", 1e-12), "mlm_head.ln"),
        pooler=pooler if kind == encoder.PRETRAINING else None,
    )


FAMILY = Albert()
