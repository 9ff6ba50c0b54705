"""OPT: learned positions, ReLU; norms before or, in 350m, after; a narrow vocabulary there too.

Notable: position 0 has the third row of the table, as the first two were meant for pads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.families._decoder import attention, both, head_width, in_layers
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.block import AnyBlock
from workbench.models.layers.context import in_block, outside_blocks
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm, NoNorm, Norm, PlainLayerNorm
from workbench.models.layers.post_norm import PostNormBlock
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size hidden_size ffn_dim num_hidden_layers num_attention_heads activation_function "
    "max_position_embeddings do_layer_norm_before _remove_final_layer_norm word_embed_proj_dim "
    "enable_bias layer_norm_elementwise_affine tie_word_embeddings "
    "dropout attention_dropout activation_dropout layerdrop init_std".split()  # without effect
)
OFFSET = 2  # rows before that of position 0
EPS = 1e-5
NAMES = MappingProxyType(
    {
        "model.decoder.embed_tokens.weight": "embed.tokens",
        "model.decoder.embed_positions.weight": "embed.positions",
        "model.decoder.project_in.weight": "embed.project.weight",
        "model.decoder.project_out.weight": "unembed.project.weight",
        **in_layers(
            "model.decoder.layers.{}",
            {
                "self_attn_layer_norm": "ln1",
                "self_attn.q_proj": "attn.q",
                "self_attn.k_proj": "attn.k",
                "self_attn.v_proj": "attn.v",
                "self_attn.out_proj": "attn.o",
                "final_layer_norm": "ln2",
                "fc1": "mlp.up",
                "fc2": "mlp.down",
            },
        ),
        **both({"model.decoder.final_layer_norm": "ln_final"}),
        "lm_head.weight": "unembed.weight",
    }
)


@final
@dataclass(frozen=True)
class OPT(Family):
    """The OPT architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes = _sizes(config)
        width = config.count("word_embed_proj_dim", default=sizes.d_model)
        narrow = None if width == sizes.d_model else width
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model, sizes.n_ctx, d_embed=narrow),
            blocks=[_block(layer, sizes, config) for layer in range(sizes.n_layers)],
            ln_final=_last_norm(sizes, config),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab, d_embed=narrow),
            rotary=None,
            tied=config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        full = {_full(name): tensor for name, tensor in weights.items()}
        found = renamed(full, NAMES, stack.sizes.n_layers, ("decoder.version",))
        if "embed.positions" in found:
            found["embed.positions"] = found["embed.positions"][OFFSET:]
        return tie(found, stack)


def _full(name: str) -> str:
    """The name with its prefix, which the original checkpoints leave out."""
    return f"model.{name}" if name.startswith("decoder.") else name


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    return Sizes(
        n_layers=config.layers("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=config.count("ffn_dim"),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings", default=2048),
    )


def _block(layer: int, sizes: Sizes, config: Config) -> AnyBlock:
    at, bias = in_block(layer), config.flag("enable_bias", default=True)
    act = config.activation("activation_function", "relu")
    attn = attention(layer, sizes, bias=bias, out_bias=bias)
    mlp = MLP(sizes.d_model, sizes.d_mlp, act, at, bias=bias)
    ln1, ln2 = (_norm(sizes, config, name, layer) for name in ("ln1", "ln2"))
    before = config.flag("do_layer_norm_before", default=True)
    return (Block if before else PostNormBlock)(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


def _norm(sizes: Sizes, config: Config, name: str, layer: int | None) -> Norm:
    at = outside_blocks if layer is None else in_block(layer)
    if not config.flag("layer_norm_elementwise_affine", default=True):
        return PlainLayerNorm(EPS, at, name)
    return LayerNorm(sizes.d_model, EPS, at, name)


def _last_norm(sizes: Sizes, config: Config) -> Norm:
    removed = config.flag("_remove_final_layer_norm", default=False)
    if removed or not config.flag("do_layer_norm_before", default=True):
        return NoNorm()
    return _norm(sizes, config, "ln_final", None)


FAMILY = OPT()
