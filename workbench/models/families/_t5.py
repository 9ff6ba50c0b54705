"""What T5 and its multilingual kin share: pre-norm stacks, a bias by distance, unscaled scores."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.core.sites import Site
from workbench.models.config import Config, activation_named
from workbench.models.encoder_decoder import TwoStacks
from workbench.models.family import renamed, without_copies
from workbench.models.layers.attention import Attention
from workbench.models.layers.bucketed_bias import BucketedBias
from workbench.models.layers.context import At, in_stack, outside_blocks
from workbench.models.layers.cross_attention import CrossAttention
from workbench.models.layers.cross_block import CrossBlock
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.entrance import Entrance
from workbench.models.layers.mlp import MLP, FeedForward, GatedMLP
from workbench.models.layers.norm import RMSNorm
from workbench.models.transformer import Block

READ = frozenset(
    "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads layer_norm_epsilon "
    "relative_attention_num_buckets relative_attention_max_distance feed_forward_proj "
    "decoder_start_token_id pad_token_id is_encoder_decoder "
    # said again by others, of no effect at inference, or of a head for classes
    "dense_act_fn is_gated_act n_positions output_past dropout_rate initializer_factor "
    "classifier_dropout tokenizer_class max_length".split()
)
UNBOUNDED = 2**15  # positions: distances have no limit of their own
_HEADS = {one: one for one in "qkvo"}
_FEED = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
AGAIN = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = ("EncDecAttention.relative_attention_bias.weight",)  # old checkpoints have one


def _names() -> Mapping[str, str]:
    found = {
        "shared.weight": "embed.tokens",
        "lm_head.weight": "unembed.weight",
        "encoder.final_layer_norm.weight": "encoder_final.weight",
        "decoder.final_layer_norm.weight": "ln_final.weight",
    }
    own, across, feed = ("SelfAttention", "attn"), ("EncDecAttention", "cross.inner"), "mlp"
    for theirs, ours, bias, parts in (
        ("encoder", "blocks", "source_bias", (own, ("DenseReluDense", feed))),
        ("decoder", "decoder", "target_bias", (own, across, ("DenseReluDense", feed))),
    ):
        first = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[first] = f"{bias}.weight"  # shared by all layers of the stack
        for place, (part, brick) in enumerate(parts):
            layer, block = f"{theirs}.block.{{}}.layer.{place}", f"{ours}.{{}}"
            found[f"{layer}.layer_norm.weight"] = f"{block}.ln{place + 1}.weight"
            for old, new in (_FEED if brick == feed else _HEADS).items():
                found[f"{layer}.{part}.{old}.weight"] = f"{block}.{brick}.{new}.weight"
    return found


NAMES: Mapping[str, str] = MappingProxyType(_names())


def stacks(config: Config, *, scale: bool) -> TwoStacks:
    """The empty stacks of a config; `scale` says that the unembedding reads less of the stream."""
    sizes = _sizes(config)
    n_encoder = sizes.n_encoder_layers
    return TwoStacks(
        sizes=sizes,
        embed=Embedding(sizes.d_vocab, sizes.d_model),
        entrances=(
            Entrance(outside_blocks, sizes.d_model),
            Entrance(lambda name: Site(f"decoder.{name}"), sizes.d_model),
        ),
        blocks=[_block(layer, sizes, config) for layer in range(n_encoder)],
        encoder_final=_norm(sizes, config, outside_blocks, "encoder_final_ln"),
        decoder=[_cross(layer, sizes, config) for layer in range(sizes.n_layers - n_encoder)],
        ln_final=_norm(sizes, config, outside_blocks, "decoder_final_ln"),
        unembed=Unembedding(sizes.d_model, sizes.d_vocab),
        biases=(_bias(sizes, config, causal=False), _bias(sizes, config, causal=True)),
        scale=sizes.d_model**-0.5 if scale else None,
    )


def under_our_names(weights: Mapping[str, Tensor], n_layers: int) -> Mapping[str, Tensor]:
    """A checkpoint's weights under the stacks' names.

    Raises:
        WeightsError: If a stack has another embedding than the shared one.
    """
    found = renamed(without_copies(weights, "shared.weight", AGAIN), NAMES, n_layers, UNUSED)
    if "embed.tokens" in found:  # which is the unembedding, unless there is one
        found.setdefault("unembed.weight", found["embed.tokens"])
    return found


def _sizes(config: Config) -> Sizes:
    n_encoder, n_heads = config.layers("num_layers"), config.count("num_heads")
    n_decoder = n_encoder
    if config.values.get("num_decoder_layers") is not None:
        n_decoder = config.layers("num_decoder_layers")
    return Sizes(
        n_layers=n_encoder + n_decoder,
        d_model=config.count("d_model"),
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=config.count("d_kv"),
        d_mlp=config.count("d_ff"),
        d_vocab=config.count("vocab_size"),
        n_ctx=UNBOUNDED,
        n_encoder_layers=n_encoder,
        start_id=_start(config),
    )


def _start(config: Config) -> int | None:
    """The token a target begins with: the pad, where the config does not name another."""
    for name in ("decoder_start_token_id", "pad_token_id"):
        found = config.values.get(name)
        if found is not None:
            return int(found)
    return None


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    at = in_stack("encoder", layer)
    return Block(
        at,
        ln1=_norm(sizes, config, at, "ln1"),
        attn=_attention(layer, sizes, at),
        ln2=_norm(sizes, config, at, "ln2"),
        mlp=_feed(sizes, config, at),
    )


def _cross(layer: int, sizes: Sizes, config: Config) -> CrossBlock:
    at = in_stack("decoder", layer)
    cross = CrossAttention(
        layer, sizes.d_model, sizes.n_heads, sizes.d_head, at, scale=1.0, bias=False
    )
    return CrossBlock(
        at,
        ln1=_norm(sizes, config, at, "ln1"),
        attn=_attention(layer, sizes, at),
        ln2=_norm(sizes, config, at, "ln2"),
        cross=cross,
        ln3=_norm(sizes, config, at, "ln3"),
        mlp=_feed(sizes, config, at),
    )


def _attention(layer: int, sizes: Sizes, at: At) -> Attention:
    return Attention(
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_heads,
        sizes.d_head,
        at,
        scale=1.0,
        rotary=False,
        bias=False,
        out_bias=False,
    )


def _feed(sizes: Sizes, config: Config, at: At) -> FeedForward:
    """The feed-forward a config names: "relu", or "gated-gelu", whose GELU is the tanh one.

    Raises:
        OptionError: If it is neither an activation nor a gated one.
    """
    named = str(config.values.get("feed_forward_proj", "relu"))
    gate, _, name = named.rpartition("-")
    if gate not in ("", "gated"):
        raise OptionError("feed_forward_proj", "an activation, or 'gated-' and one", named)
    act = activation_named("gelu_new" if named == "gated-gelu" else name)
    brick = GatedMLP if gate else MLP
    return brick(sizes.d_model, sizes.d_mlp, act, at, bias=False)


def _bias(sizes: Sizes, config: Config, *, causal: bool) -> BucketedBias:
    n_buckets = config.count("relative_attention_num_buckets", default=32)
    farthest = config.count("relative_attention_max_distance", default=128)
    return BucketedBias(n_buckets, farthest, sizes.n_heads, causal=causal)


def _norm(sizes: Sizes, config: Config, at: At, name: str) -> RMSNorm:
    return RMSNorm(sizes.d_model, config.number("layer_norm_epsilon", 1e-6), at, name)
