"""XLNet: two streams of post-norm blocks, by content, distance and segment.

Notable: a loaded model has the content stream; its `predicting` has both. `bi_data` means here what
transformers makes of it: the second half of a batch's rows is read backwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast, final

from torch import Tensor
from typing_extensions import override

from workbench.core.axes import BLOCKS
from workbench.core.errors import OptionError
from workbench.core.protocols import Output, Sizes, Streams
from workbench.models import encoder_family as encoder
from workbench.models.config import Config
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.context import in_stack
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.head import AnyHead
from workbench.models.layers.heads import Classifier, Headless, Pooler
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm
from workbench.models.layers.relative import RelativeAttention
from workbench.models.layers.sight import Rules
from workbench.models.layers.two_stream_block import TwoStreamBlock
from workbench.models.transformer import Stack
from workbench.models.two_stream import TwoStreamStack

READ = frozenset(
    "vocab_size d_model n_layer n_head d_head d_inner ff_activation layer_norm_eps attn_type "
    "bi_data clamp_len same_length mem_len reuse_len tie_word_embeddings summary_type "
    "summary_use_proj summary_activation num_labels "
    # in training, of other heads, or of what is handed back
    "dropout dropatt use_mems_eval use_mems_train use_mems mems_mode start_n_top end_n_top "
    "summary_last_dropout summary_first_dropout init init_range init_std".split()
)
DEFAULTS = MappingProxyType({"untie_r": True, "summary_proj_to_labels": False})
UNBOUNDED = 2**25  # distances are computed: no text is too long
LM, MODEL = "XLNetLMHeadModel", "XLNetModel"
TEXTS, WORDS = "XLNetForSequenceClassification", "XLNetForTokenClassification"
LAYER = "transformer.layer.{}"
NAMES = MappingProxyType(
    {
        "transformer.word_embedding.weight": "embed.tokens",
        "transformer.mask_emb": "nothing",
        **{f"{LAYER}.rel_attn.{n}": f"blocks.{{}}.attn.{n}.weight" for n in "qkvro"},
        f"{LAYER}.rel_attn.r_w_bias": "blocks.{}.attn.of_content",
        f"{LAYER}.rel_attn.r_r_bias": "blocks.{}.attn.of_distance",
        f"{LAYER}.rel_attn.r_s_bias": "blocks.{}.attn.of_segment",
        f"{LAYER}.rel_attn.seg_embed": "blocks.{}.attn.segments",
        **encoder.both(
            {
                f"{LAYER}.rel_attn.layer_norm": "blocks.{}.ln1",
                f"{LAYER}.ff.layer_1": "blocks.{}.mlp.up",
                f"{LAYER}.ff.layer_2": "blocks.{}.mlp.down",
                f"{LAYER}.ff.layer_norm": "blocks.{}.ln2",
                "lm_loss": "unembed",
                "sequence_summary.summary": "unembed.pooler.dense",
                "logits_proj": "unembed.labels",
                "classifier": "unembed.labels",
            }
        ),
    }
)
OWN = ("transformer.", "lm_loss.", "sequence_summary.", "logits_proj.", "classifier.")


@final
@dataclass(frozen=True)
class XLNet(Family):
    """The XLNet architecture."""

    @override
    def build(self, config: Config) -> TwoStreamStack:
        config.finish(READ, DEFAULTS)
        kind = _kind(config)
        sizes = _sizes(config, kind)
        return TwoStreamStack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, config) for layer in range(sizes.n_layers)],
            unembed=_head(kind, sizes, config),
            rules=_rules(config, sizes),
            tied=kind == LM and config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        full = {
            name if name.startswith(OWN) else f"transformer.{name}": _reshaped(name, weight)
            for name, weight in weights.items()
        }
        return tie(renamed(full, NAMES, stack.sizes.n_layers, ()), stack)


def _reshaped(name: str, weight: Tensor) -> Tensor:
    """A matrix by head as one matrix, (d_out, d_in); a view."""
    if name.endswith("mask_emb") and weight.ndim == 3:
        return weight.flatten(0, 1)
    if not name.endswith(tuple(f"rel_attn.{part}" for part in "qkvro")) or weight.ndim != 3:
        return weight
    flat = weight.flatten(1)  # d_model, head d_head
    return flat if name.endswith(".o") else flat.T


def _kind(config: Config) -> str:
    """The class that the config's `architectures` names; without that, a language model's.

    Raises:
        OptionError: If its head is not known here.
    """
    named: Any = config.values.get("architectures") or [LM]
    name = str(cast("list[object]", named)[0]) if isinstance(named, list | tuple) else ""
    kinds = (LM, MODEL, TEXTS, WORDS)
    if name not in kinds:
        allowed = f"one of {', '.join(kinds)}"
        raise OptionError("xlnet: config key 'architectures'", allowed, named)
    return name


def _sizes(config: Config, kind: str) -> Sizes:
    d_model, n_heads = config.count("d_model"), config.count("n_head")
    d_head = encoder.d_head_of(config, d_model, n_heads)
    if config.count("d_head", default=d_head) != d_head:
        allowed = f"d_model / n_head, {d_head}"
        raise OptionError("xlnet: config key 'd_head'", allowed, config.values["d_head"])
    if d_model % 2:
        raise OptionError("xlnet: config key 'd_model'", "even: sines and cosines", d_model)
    return Sizes(
        n_layers=config.layers("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=d_head,
        d_mlp=config.count("d_inner"),
        d_vocab=config.count("vocab_size"),
        n_ctx=UNBOUNDED,
        output=_output(config, kind),
        streams=Streams(halves=config.flag("bi_data", default=False)),
    )


def _output(config: Config, kind: str) -> Output:
    if kind in (LM, MODEL):
        return Output("vocabulary" if kind == LM else "stream", "last")
    if kind == WORDS:
        return Output("labels", "asked", encoder.labels_of(config))
    summary = config.values.get("summary_type", "last")
    if summary not in ("last", "first"):
        raise OptionError("xlnet: config key 'summary_type'", "'last' or 'first'", summary)
    return Output("labels", summary, encoder.labels_of(config))


def _rules(config: Config, sizes: Sizes) -> Rules:
    kind = config.values.get("attn_type", "bi")
    if kind not in ("bi", "uni"):
        raise OptionError("xlnet: config key 'attn_type'", "'bi' or 'uni'", kind)
    clamp = int(min(config.number("clamp_len", -1.0), UNBOUNDED))
    return Rules(
        sizes.d_model,
        forward=kind == "uni",
        same_length=config.flag("same_length", default=False),
        clamp=clamp if clamp > 0 else None,
        length=_kept(config, "mem_len"),
        reuse=_kept(config, "reuse_len"),
    )


def _kept(config: Config, name: str) -> int | None:
    """A number of tokens; 0 or nothing for all of them."""
    return config.count(name) if config.values.get(name) else None


def _block(layer: int, sizes: Sizes, config: Config) -> TwoStreamBlock:
    at, eps = in_stack(BLOCKS, layer), config.number("layer_norm_eps", 1e-12)
    act = config.activation("ff_activation", "gelu")
    return TwoStreamBlock(
        layer,
        attn=RelativeAttention(sizes.d_model, sizes.n_heads, sizes.d_head, at),
        ln1=LayerNorm(sizes.d_model, eps, at, "ln1"),
        mlp=MLP(sizes.d_model, sizes.d_mlp, act, at, bias=True),
        ln2=LayerNorm(sizes.d_model, eps, at, "ln2"),
    )


def _head(kind: str, sizes: Sizes, config: Config) -> AnyHead:
    if kind == LM:
        return Unembedding(sizes.d_model, sizes.d_vocab, bias=True)
    if kind == MODEL:
        return Headless()
    pooler = _pooler(sizes, config) if kind == TEXTS else None
    return Classifier(sizes.d_model, len(sizes.output.labels), pooler)


def _pooler(sizes: Sizes, config: Config) -> Pooler | None:
    """What sums a text up.

    Raises:
        OptionError: If it is an activation function without a matrix.
    """
    named, dense = config.values.get("summary_activation", "tanh"), "summary_use_proj"
    if config.flag(dense, default=True):
        act = config.activation("summary_activation", "tanh") if named else _as_it_is
        return Pooler(sizes.d_model, sizes.d_model, act)
    if named:
        allowed = f"true, with {named!r} after it"
        raise OptionError(f"xlnet: config key {dense!r}", allowed, config.values[dense])
    return None


def _as_it_is(pooled: Tensor) -> Tensor:
    return pooled


FAMILY = XLNet()
