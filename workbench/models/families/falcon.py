"""Falcon: 7b's one key head and one norm, 40b's groups and two norms, rw's ALiBi and no sharing."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.families._decoder import (
    apart,
    attention,
    both,
    by_group,
    head_width,
    in_both_places,
    in_layers,
    layer_norm,
    one_norm,
    partly_rotary,
)
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.block import AnyBlock
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm
from workbench.models.layers.score_bias import CoarseAlibi, halving_slopes
from workbench.models.transformer import Block, ParallelBlock, Stack

READ = frozenset(
    "vocab_size hidden_size ffn_hidden_size num_hidden_layers num_attention_heads num_kv_heads "
    "num_ln_in_parallel_attn layer_norm_epsilon alibi new_decoder_architecture multi_query "
    "parallel_attn bias max_position_embeddings activation tie_word_embeddings "
    "rope_parameters rope_scaling rope_theta "
    "hidden_dropout attention_dropout".split()  # without effect at inference
)
NAMES = MappingProxyType(
    {
        "transformer.word_embeddings.weight": "embed.tokens",
        **in_layers(
            "transformer.h.{}",
            {
                "input_layernorm": "ln1",
                "ln_attn": "ln1",
                "self_attention.query_key_value": "attn.qkv",
                "self_attention.dense": "attn.o",
                "post_attention_layernorm": "ln2",
                "ln_mlp": "ln2",
                "mlp.dense_h_to_4h": "mlp.up",
                "mlp.dense_4h_to_h": "mlp.down",
            },
        ),
        **both({"transformer.ln_f": "ln_final"}),
        "lm_head.weight": "unembed.weight",
    }
)
IGNORED = (".rotary_emb.inv_freq",)


@final
@dataclass(frozen=True)
class Falcon(Family):
    """The Falcon architectures."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes, alibi = _sizes(config), config.flag("alibi", default=False)
        eps = config.number("layer_norm_epsilon", 1e-5)
        bias = CoarseAlibi(halving_slopes(sizes.n_heads), sizes.d_head**-0.5)
        turning = partly_rotary(config, sizes.d_head, base="rope_theta", share="rotary", usual=1.0)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, config, eps) for layer in range(sizes.n_layers)],
            ln_final=layer_norm(sizes, eps, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=None if alibi else turning,
            tied=config.flag("tie_word_embeddings", default=True),
            score_bias=bias if alibi else None,
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, IGNORED)
        found = apart(found, weights, by_group(stack.sizes))
        return tie(in_both_places(found, stack), stack)


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    n_groups = n_heads
    if _new(config):
        n_groups = config.count("num_kv_heads", default=n_heads)
    elif config.flag("multi_query", default=True):
        n_groups = 1
    if n_heads % n_groups:
        raise OptionError("falcon: num_attention_heads", f"a multiple of {n_groups}", n_heads)
    return Sizes(
        n_layers=config.layers("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_groups,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=config.count("ffn_hidden_size", default=4 * d_model),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings", default=2048),
    )


def _new(config: Config) -> bool:
    return config.flag("new_decoder_architecture", default=False)


def _block(layer: int, sizes: Sizes, config: Config, eps: float) -> AnyBlock:
    at, bias = in_block(layer), config.flag("bias", default=False)
    rotary = not config.flag("alibi", default=False)
    attn = attention(layer, sizes, rotary=rotary, bias=bias, out_bias=bias)
    mlp = MLP(sizes.d_model, sizes.d_mlp, config.activation("activation", "gelu"), at, bias=bias)
    parallel = _new(config) or config.flag("parallel_attn", default=True)
    ln1, ln2 = _norms(layer, sizes, config, eps, parallel=parallel)
    return (ParallelBlock if parallel else Block)(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


def _norms(
    layer: int, sizes: Sizes, config: Config, eps: float, *, parallel: bool
) -> tuple[LayerNorm, LayerNorm]:
    count = config.count("num_ln_in_parallel_attn", default=2 if _new(config) else 1)
    if parallel and count == 1:
        return one_norm(sizes, eps, layer)
    return layer_norm(sizes, eps, "ln1", layer), layer_norm(sizes, eps, "ln2", layer)


FAMILY = Falcon()
