"""ModernBERT: pre-norm blocks that read both ways, by turns everything and what is near.

Notable: the first block has no norm before its heads, since the embedding is normalised; local and
global layers turn by frequencies of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast, final

from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models import encoder_family as encoder
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import in_block, outside_blocks
from workbench.models.layers.embed import NormedEmbedding
from workbench.models.layers.head import AnyHead
from workbench.models.layers.heads import Classifier, Headless, MaskedHead, Pooler
from workbench.models.layers.mlp import GatedMLP
from workbench.models.layers.norm import BiaslessLayerNorm, LayerNorm, NoNorm, Norm
from workbench.models.layers.positions import Rotary, rotary
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads norm_eps "
    "hidden_activation max_position_embeddings norm_bias attention_bias mlp_bias layer_types "
    "rope_parameters local_attention decoder_bias classifier_pooling classifier_bias "
    "classifier_activation tie_word_embeddings global_attn_every_n_layers global_rope_theta "
    "local_rope_theta cls_token_id initializer_cutoff_factor deterministic_flash_attn "
    "sparse_pred_ignore_index reference_compile repad_logits_with_grad layer_norm_eps "
    "attention_dropout embedding_dropout mlp_dropout classifier_dropout".split()  # in training
)
DEFAULTS = MappingProxyType({"sparse_prediction": False, "position_embedding_type": "absolute"})
GLOBAL, LOCAL = "full_attention", "sliding_attention"
THETAS = MappingProxyType({GLOBAL: 160_000.0, LOCAL: 10_000.0})
BODY = {
    "model.embeddings.tok_embeddings.weight": "embed.tokens",
    **encoder.both({"model.embeddings.norm": "embed.ln", "model.final_norm": "ln_final"}),
    **encoder.in_layers(
        "model.layers",
        {
            "attn_norm": "ln1",
            "attn.q": "attn.q",
            "attn.k": "attn.k",
            "attn.v": "attn.v",
            "attn.Wo": "attn.o",
            "mlp_norm": "ln2",
            "mlp.gate": "mlp.gate",
            "mlp.up": "mlp.up",
            "mlp.Wo": "mlp.down",
        },
    ),
}
HEADS = (
    *encoder.both({"head.dense": "unembed.dense", "head.norm": "unembed.ln"}).items(),
    *encoder.both({"head.dense": "unembed.pooler.dense"}).items(),
    *encoder.both({"head.norm": "unembed.pooler.ln"}).items(),
    *encoder.both({"decoder": "unembed.words", "classifier": "unembed.labels"}).items(),
)
PARTS = MappingProxyType(
    {"attn.Wqkv": ("attn.q", "attn.k", "attn.v"), "mlp.Wi": ("mlp.gate", "mlp.up")}
)


@final
@dataclass(frozen=True)
class ModernBert(Family):
    """The ModernBERT architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        kind = encoder.kind_of(config)
        n_ctx = config.count("max_position_embeddings", default=8192)
        sizes = encoder.sizes_of(config, n_ctx, encoder.output_of(kind, config))
        kinds, embed = _kinds(config, sizes.n_layers), _norm(sizes, config, "embed.ln", None)
        return Stack(
            sizes=sizes,
            embed=NormedEmbedding(sizes.d_vocab, sizes.d_model, embed),
            blocks=[_block(layer, kinds[layer], sizes, config) for layer in range(sizes.n_layers)],
            ln_final=_norm(sizes, config, "ln_final", None),
            unembed=_head(kind, sizes, config),
            rotary=_rotary(sizes, config, GLOBAL),
            local_rotary=_rotary(sizes, config, LOCAL),
            causal=False,
            tied=kind == encoder.MASKED and config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        apart: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            joint = next((joint for joint in PARTS if f".{joint}." in name), None)
            names = (joint,) if joint is None else PARTS[joint]
            parts = (tensor,) if joint is None else tensor.chunk(len(names))
            for own, part in zip(names, parts, strict=True):
                apart[name if joint is None or own is None else name.replace(joint, own)] = part
        return encoder.matched(apart, stack, BODY, HEADS, prefix="model")


def _block(layer: int, kind: str, sizes: Sizes, config: Config) -> Block:
    at, bias = in_block(layer), config.flag("attention_bias", default=False)
    near = config.count("local_attention", default=128) // 2
    attention = Attention(
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_heads,
        sizes.d_head,
        at,
        scale=sizes.d_head**-0.5,
        rotary=True,
        bias=bias,
        out_bias=bias,
        window=near + 1 if kind == LOCAL else None,  # on either side, itself among them
        local=kind == LOCAL,
    )
    mlp = GatedMLP(
        sizes.d_model,
        sizes.d_mlp,
        config.activation("hidden_activation", "gelu"),
        at,
        bias=config.flag("mlp_bias", default=False),
    )
    ln1 = _norm(sizes, config, "ln1", layer) if layer else NoNorm()
    return Block(at, ln1=ln1, attn=attention, ln2=_norm(sizes, config, "ln2", layer), mlp=mlp)


def _head(kind: str, sizes: Sizes, config: Config) -> AnyHead:
    if kind == encoder.MODEL:
        return Headless()
    act = config.activation("classifier_activation", "gelu")
    bias = config.flag("classifier_bias", default=False)
    if kind == encoder.MASKED:
        norm, words = (
            _norm(sizes, config, "mlm_head.ln", None),
            config.flag("decoder_bias", default=True),
        )
        return MaskedHead(
            sizes.d_model,
            sizes.d_model,
            sizes.d_vocab,
            act,
            norm,
            dense_bias=bias,
            bias=words,
        )
    pooling = config.values.get("classifier_pooling", "cls")
    if kind == encoder.TEXTS and pooling != "cls":
        allowed = "'cls': what is said of a text is said at its first token"
        raise OptionError("modernbert: config key 'classifier_pooling'", allowed, pooling)
    norm = _norm(sizes, config, "pooler.ln", None)
    pooler = Pooler(sizes.d_model, sizes.d_model, act, bias=bias, norm=norm)
    return Classifier(sizes.d_model, len(sizes.output.labels), pooler)


def _norm(sizes: Sizes, config: Config, name: str, layer: int | None) -> Norm:
    at = outside_blocks if layer is None else in_block(layer)
    kind = LayerNorm if config.flag("norm_bias", default=False) else BiaslessLayerNorm
    return kind(sizes.d_model, config.number("norm_eps", 1e-5), at, name)


def _kinds(config: Config, n_layers: int) -> Sequence[str]:
    """Which layers see everything, and which what is near.

    Raises:
        OptionError: If the config's list is not one of such words, one for each layer.
    """
    every = config.count("global_attn_every_n_layers", default=3)
    named: Any = config.values.get("layer_types") or [
        LOCAL if layer % every else GLOBAL for layer in range(n_layers)
    ]
    kinds = (
        tuple(map(str, cast("Sequence[object]", named))) if isinstance(named, list | tuple) else ()
    )
    if len(kinds) != n_layers or not set(kinds) <= {GLOBAL, LOCAL}:
        allowed = f"{n_layers} of {GLOBAL!r} and {LOCAL!r}"
        raise OptionError("modernbert: config key 'layer_types'", allowed, named)
    return kinds


def _rotary(sizes: Sizes, config: Config, kind: str) -> Rotary:
    """How layers of a kind turn, as newer and older configs say it.

    Raises:
        OptionError: If the parameters are no table.
    """
    old = "global_rope_theta" if kind == GLOBAL else "local_rope_theta"
    theta = config.number(old, THETAS[kind])
    tables: Any = config.values.get("rope_parameters") or {}
    own: Any = tables.get(kind) or {} if isinstance(tables, Mapping) else None
    if not isinstance(own, Mapping):
        raise OptionError("modernbert: config key 'rope_parameters'", "tables by kind", tables)
    parameters = {"rope_theta": theta, **cast("Mapping[str, Any]", own)}
    return rotary(sizes.d_head, parameters, sizes.n_ctx)


FAMILY = ModernBert()
