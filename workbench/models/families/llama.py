"""Llama 1-3 and its relatives: RMSNorm, rotary positions, grouped keys and values, a gated MLP.

SmolLM2, TinyLlama and Vicuna are of this family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast, final

from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import in_block, outside_blocks
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import GatedMLP
from workbench.models.layers.norm import RMSNorm
from workbench.models.layers.positions import rotary
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps rope_theta "
    "rope_scaling rope_parameters attention_bias mlp_bias tie_word_embeddings "
    "attention_dropout pretraining_tp".split()  # neither acts at inference
)
NAMES = MappingProxyType(
    {
        "model.embed_tokens.weight": "embed.tokens",
        "model.layers.{}.input_layernorm.weight": "blocks.{}.ln1.weight",
        "model.layers.{}.post_attention_layernorm.weight": "blocks.{}.ln2.weight",
        **{
            f"model.layers.{{}}.self_attn.{old}_proj.{kind}": f"blocks.{{}}.attn.{old}.{kind}"
            for old in "qkvo"
            for kind in ("weight", "bias")
        },
        **{
            f"model.layers.{{}}.mlp.{old}_proj.{kind}": f"blocks.{{}}.mlp.{old}.{kind}"
            for old in ("gate", "up", "down")
            for kind in ("weight", "bias")
        },
        "model.norm.weight": "ln_final.weight",
        "lm_head.weight": "unembed.weight",
    }
)


@final
@dataclass(frozen=True)
class Llama(Family):
    """The Llama architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes = _sizes(config)
        blocks = [_block(layer, sizes, config) for layer in range(sizes.n_layers)]
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=blocks,
            ln_final=_norm(sizes, config, "ln_final", None),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=rotary(sizes.d_head, _rope(config)),
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, ("rotary_emb.inv_freq",))
        return tie(found, stack)


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    n_groups = config.count("num_key_value_heads", default=n_heads)
    if n_heads % n_groups:
        raise OptionError("llama: num_attention_heads", f"a multiple of {n_groups}", n_heads)
    return Sizes(
        n_layers=config.layers("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_groups,
        d_head=config.count("head_dim", default=d_model // n_heads),
        d_mlp=config.count("intermediate_size"),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings", default=2048),
    )


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    at, bias = in_block(layer), config.flag("attention_bias", default=False)
    attention = Attention(
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_key_value_heads,
        sizes.d_head,
        at,
        scale=sizes.d_head**-0.5,
        rotary=True,
        bias=bias,
        out_bias=bias,
    )
    mlp = GatedMLP(
        sizes.d_model,
        sizes.d_mlp,
        config.activation("hidden_act", "silu"),
        at,
        bias=config.flag("mlp_bias", default=False),
    )
    ln1, ln2 = _norm(sizes, config, "ln1", layer), _norm(sizes, config, "ln2", layer)
    return Block(at, ln1=ln1, attn=attention, ln2=ln2, mlp=mlp)


def _norm(sizes: Sizes, config: Config, name: str, layer: int | None) -> RMSNorm:
    at = outside_blocks if layer is None else in_block(layer)
    return RMSNorm(sizes.d_model, config.number("rms_norm_eps", 1e-6), at, name)


def _rope(config: Config) -> Mapping[str, Any]:
    """Rotary parameters, where older and newer configs keep them.

    Raises:
        OptionError: If they are no table.
    """
    parameters: dict[str, Any] = {"rope_theta": config.number("rope_theta", 10000.0)}
    for name in ("rope_scaling", "rope_parameters"):
        found = config.values.get(name) or {}
        if not isinstance(found, Mapping):
            raise OptionError(f"llama: config key {name!r}", "a table", found)
        parameters.update(cast("Mapping[str, Any]", found))
    return parameters


FAMILY = Llama()
