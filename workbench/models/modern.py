"""What the families after Llama share: sizes, heads, rotary parameters, windows, weight names."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, cast

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import At, in_block, outside_blocks
from workbench.models.layers.mlp import GatedMLP
from workbench.models.layers.norm import RMSNorm
from workbench.models.layers.positions import ORIGINAL, Rotary, reach, rotary

READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads hidden_act max_position_embeddings rms_norm_eps rope_theta "
    "rope_scaling rope_parameters original_max_position_embeddings tie_word_embeddings "
    "attention_dropout".split()  # has no effect at inference
)
WINDOWED = READ | {"sliding_window", "layer_types"}
QKVO = tuple((f"self_attn.{part}_proj", f"attn.{part}") for part in "qkvo")
GATED = tuple((f"mlp.{part}_proj", f"mlp.{part}") for part in ("gate", "up", "down"))
PRE_NORMS = (("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2"))
QK_NORMS = (("self_attn.q_norm", "attn.q_norm"), ("self_attn.k_norm", "attn.k_norm"))
SLIDING, FULL = "sliding_attention", "full_attention"


def names(*parts: tuple[str, str]) -> Mapping[str, str]:
    """The table of weight names of a stack whose layers have these parts, old and new."""
    layers = {
        f"model.layers.{{}}.{old}.{kind}": f"blocks.{{}}.{new}.{kind}"
        for old, new in parts
        for kind in ("weight", "bias")
    }
    outside = {
        "model.embed_tokens.weight": "embed.tokens",
        "model.norm.weight": "ln_final.weight",
        "model.norm.bias": "ln_final.bias",
        "lm_head.weight": "unembed.weight",
        "lm_head.bias": "unembed.bias",
    }
    return MappingProxyType({**outside, **layers})


def sizes_of(
    config: Config, parameters: Mapping[str, Any] | None, *, d_head: int | None = None
) -> Sizes:
    """The counts and widths of a config; `parameters` are those of its rotation, if it has one.

    Raises:
        OptionError: If one is missing or impossible.
    """
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    n_groups = config.count("num_key_value_heads", default=n_heads)
    if n_heads % n_groups:
        name = f"{config.family}: num_attention_heads"
        raise OptionError(name, f"a multiple of {n_groups}", n_heads)
    n_ctx = config.count("max_position_embeddings", default=2048)
    return Sizes(
        n_layers=config.layers("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_groups,
        d_head=config.count("head_dim", default=d_head or d_model // n_heads),
        d_mlp=config.count("intermediate_size"),
        d_vocab=config.count("vocab_size"),
        n_ctx=n_ctx if parameters is None else reach(n_ctx, parameters),
    )


def rope_of(config: Config, theta: float = 10000.0) -> dict[str, Any]:
    """Rotary parameters, where older and newer configs keep them; `theta` where they name no base.

    Raises:
        OptionError: If they are no table.
    """
    parameters: dict[str, Any] = {"rope_theta": config.number("rope_theta", theta)}
    for name in ("rope_scaling", "rope_parameters"):
        found = config.values.get(name) or {}
        if not isinstance(found, Mapping):
            raise OptionError(f"{config.family}: config key {name!r}", "a table", found)
        parameters.update(cast("Mapping[str, Any]", found))
    if config.values.get(ORIGINAL) is not None:
        parameters[ORIGINAL] = config.count(ORIGINAL)
    return parameters


def turning(
    config: Config, sizes: Sizes, parameters: Mapping[str, Any], *, neighbours: bool = False
) -> Rotary:
    """The rotation of whole heads that these parameters describe."""
    n_ctx = config.count("max_position_embeddings", default=2048)
    return rotary(sizes.d_head, parameters, n_ctx, neighbours=neighbours)


def heads(layer: int, sizes: Sizes, *, scale: float | None = None) -> partial[Attention]:
    """Attention of these sizes, whose other choices are still to be made."""
    return partial(
        Attention,
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_key_value_heads,
        sizes.d_head,
        in_block(layer),
        scale=sizes.d_head**-0.5 if scale is None else scale,
    )


def gated(
    layer: int, sizes: Sizes, config: Config, *, bias: bool = False, key: str = "hidden_act"
) -> GatedMLP:
    """A gated feed-forward with the activation that the config names."""
    act = config.activation(key, "silu")
    return GatedMLP(sizes.d_model, sizes.d_mlp, act, in_block(layer), bias=bias)


def norm(
    config: Config, width: int, name: str, layer: int | None, default: float = 1e-6
) -> RMSNorm:
    """An RMSNorm of a block, or after all of them."""
    return RMSNorm(width, config.number("rms_norm_eps", default), place(layer), name)


def place(layer: int | None) -> At:
    """The sites of a block, or those outside."""
    return outside_blocks if layer is None else in_block(layer)


def windows(config: Config, sliding: Sequence[bool]) -> tuple[int | None, ...]:
    """How far each layer looks back, in tokens; None: as far as there are any.

    The config's `layer_types` say which are windowed; `sliding` where it has none.

    Raises:
        OptionError: If these are not one of the two known kinds for each layer.
    """
    kinds = layer_kinds(config, [SLIDING if one else FULL for one in sliding])
    if SLIDING not in kinds:
        return (None,) * len(kinds)
    width = config.count("sliding_window")
    return tuple(width if kind == SLIDING else None for kind in kinds)


def layer_kinds(config: Config, default: Sequence[str]) -> tuple[str, ...]:
    """What each layer's attention is, by the config or by default.

    Raises:
        OptionError: If these are not one of the two known kinds for each layer.
    """
    found = config.values.get("layer_types")
    kinds: object = list(default) if found is None else found
    listed = list(cast("list[object]", kinds)) if isinstance(kinds, list | tuple) else []
    if len(listed) != len(default) or not all(kind in (SLIDING, FULL) for kind in listed):
        allowed = f"a list of {len(default)}, each {SLIDING!r} or {FULL!r}"
        raise OptionError(f"{config.family}: config key 'layer_types'", allowed, found)
    return tuple(map(str, listed))
