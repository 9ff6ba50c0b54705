"""DeBERTa v2 and v3: BERT's blocks, whose scores tell content and distance apart.

Notable: one table of distances serves all layers, and, where the config says that keys are shared,
the content's own maps project it. The convolution of the largest v2 models is not here.
"""

from collections.abc import Mapping
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
from workbench.models.layers.disentangled import Disentangled, Distances
from workbench.models.layers.embed import NormedEmbedding
from workbench.models.layers.head import AnyHead
from workbench.models.layers.heads import MaskedHead, Pooler
from workbench.models.layers.norm import NoNorm
from workbench.models.layers.post_norm import PostNormBlock
from workbench.models.transformer import Stack

READ = frozenset(
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "max_position_embeddings type_vocab_size layer_norm_eps relative_attention position_buckets "
    "max_relative_positions norm_rel_ebd share_att_key pos_att_type position_biased_input "
    "pooler_hidden_act tie_word_embeddings legacy hidden_dropout_prob pooler_dropout "
    "attention_probs_dropout_prob cls_dropout classifier_dropout conv_act".split()  # in training
)
DEFAULTS = MappingProxyType({"conv_kernel_size": 0})
LAYER = {
    **{old: new for old, new in encoder.BERT_LAYER.items() if ".self." not in old},
    "attention.self.query_proj": "attn.q",
    "attention.self.key_proj": "attn.k",
    "attention.self.value_proj": "attn.v",
    "attention.self.pos_key_proj": "attn.relative.key",
    "attention.self.pos_query_proj": "attn.relative.query",
    "relative.norm": "attn.relative.norm",
}
BODY = {
    **encoder.bert_body("deberta"),
    **encoder.in_layers("deberta.encoder.layer", LAYER),
    "deberta.encoder.layer.{}.relative.embeddings": "blocks.{}.attn.relative.embeddings",
}
HEADS = (
    *encoder.both({"cls.predictions.transform.dense": "unembed.dense"}).items(),
    *encoder.both({"cls.predictions.transform.LayerNorm": "unembed.ln"}).items(),
    ("cls.predictions.decoder.weight", "unembed.words.weight"),
    ("cls.predictions.decoder.bias", "unembed.words.bias"),
    ("cls.predictions.bias", "unembed.words.bias"),
    *encoder.both({"lm_predictions.lm_head.dense": "unembed.dense"}).items(),  # of v3
    *encoder.both({"lm_predictions.lm_head.LayerNorm": "unembed.ln"}).items(),
    ("lm_predictions.lm_head.bias", "unembed.words.bias"),
    *encoder.both({"pooler.dense": "unembed.pooler.dense"}).items(),
    *encoder.both({"classifier": "unembed.labels"}).items(),
)
TABLE, NORM = "encoder.rel_embeddings.weight", "encoder.LayerNorm."
SHARED = MappingProxyType({"key_proj": "pos_key_proj", "query_proj": "pos_query_proj"})


@final
@dataclass(frozen=True)
class DebertaV2(Family):
    """The DeBERTa-v2 architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, MappingProxyType({**DEFAULTS, **_widths(config)}))
        kind, n_ctx = encoder.kind_of(config), config.count("max_position_embeddings")
        sizes = encoder.sizes_of(config, n_ctx, encoder.output_of(kind, config))
        eps, n_types = config.number("layer_norm_eps", 1e-7), _count(config, "type_vocab_size", 0)
        placed = config.flag("position_biased_input", default=True)
        return Stack(
            sizes=sizes,
            embed=NormedEmbedding(
                sizes.d_vocab,
                sizes.d_model,
                encoder.norm_of(sizes.d_model, eps, "embed.ln"),
                n_positions=n_ctx if placed else None,
                n_types=n_types,
            ),
            blocks=_with_one_table(
                [_block(layer, sizes, config, eps) for layer in range(sizes.n_layers)]
            ),
            ln_final=NoNorm(),
            unembed=_head(kind, sizes, config, eps),
            rotary=None,
            causal=False,
            tied=kind == encoder.MASKED and config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        known = {name for name, _ in stack.named_parameters(remove_duplicate=False)}
        found = {n: t for n, t in weights.items() if not n.startswith("mask_predictions.")}
        for name in [name for name in found if TABLE in name or NORM in name]:
            where, _, _ = name.partition("encoder.")
            own = name.replace(f"{where}{NORM}", "norm.").replace(f"{where}{TABLE}", "embeddings")
            tensor = found.pop(name)
            for layer in range(stack.sizes.n_layers):
                found[f"{where}encoder.layer.{layer}.relative.{own}"] = tensor
        for name in list(found):
            for old, new in SHARED.items():
                twin = name.replace(f".self.{old}.", f".self.{new}.")
                if twin != name and twin not in found and _needed(twin, known):
                    found[twin] = found[name]  # the content's own map
        return encoder.matched(found, stack, BODY, HEADS, prefix="deberta")


def _needed(name: str, known: set[str]) -> bool:
    layer = name.partition("encoder.layer.")[2].partition(".")[0]
    which = "key" if ".pos_key_proj." in name else "query"
    return f"blocks.{layer}.attn.relative.{which}.weight" in known


def _widths(config: Config) -> Mapping[str, Any]:
    """Keys that may only say what is so anyway."""
    d_model = config.count("hidden_size")
    d_head = d_model // config.count("num_attention_heads")
    return {
        "embedding_size": d_model,
        "pooler_hidden_size": d_model,
        "attention_head_size": d_head,
    }


def _with_one_table(blocks: list[PostNormBlock]) -> list[PostNormBlock]:
    """Blocks that have the first one's embeddings of distances."""
    first = blocks[0].attn.relative
    for block in blocks[1:]:
        if first is not None and block.attn.relative is not None:
            block.attn.relative.embeddings = first.embeddings
    return blocks


def _block(layer: int, sizes: Sizes, config: Config, eps: float) -> PostNormBlock:
    kinds, act = _kinds(config), config.activation("hidden_act", "gelu")
    scale = (sizes.d_head * (1 + len(kinds))) ** -0.5
    relative = None
    if kinds and config.flag("relative_attention", default=False):
        normed = "layer_norm" in str(config.values.get("norm_rel_ebd", "none"))
        relative = Disentangled(
            sizes.d_model,
            sizes.n_heads * sizes.d_head,
            _distances(config),
            encoder.norm_of(sizes.d_model, eps, "embed.ln") if normed else NoNorm(),
            scale=scale,
            to_position="c2p" in kinds,
            to_content="p2c" in kinds,
        )
    return encoder.block_of(layer, sizes, act, eps, scale=scale, relative=relative)


def _kinds(config: Config) -> frozenset[str]:
    """Which of the scores by distance there are.

    Raises:
        OptionError: If one is not known here.
    """
    given: Any = config.values.get("pos_att_type") or []
    parts = given.lower().split("|") if isinstance(given, str) else cast("list[object]", given)
    kinds = frozenset(str(part).strip() for part in parts)
    if not kinds <= {"c2p", "p2c"}:
        raise OptionError("deberta_v2: config key 'pos_att_type'", "of 'c2p' and 'p2c'", given)
    return kinds


def _distances(config: Config) -> Distances:
    longest = _count(config, "max_relative_positions", -1)
    longest = config.count("max_position_embeddings") if longest is None else longest
    buckets = _count(config, "position_buckets", -1)
    return Distances(buckets or longest, longest, buckets is not None)


def _count(config: Config, name: str, none: int) -> int | None:
    """A number above 0; None where the key is left out or has the value that says so."""
    given = config.values.get(name)
    return None if given is None or given == none else config.count(name)


def _head(kind: str, sizes: Sizes, config: Config, eps: float) -> AnyHead:
    if kind == encoder.MASKED:
        act = config.activation("hidden_act", "gelu")
        norm = encoder.norm_of(sizes.d_model, eps, "mlm_head.ln")
        return MaskedHead(sizes.d_model, sizes.d_model, sizes.d_vocab, act, norm)
    act = config.activation("pooler_hidden_act", "gelu")
    return encoder.head_of(kind, sizes, Pooler(sizes.d_model, sizes.d_model, act), None)


FAMILY = DebertaV2()
