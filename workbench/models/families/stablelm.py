"""StableLM: partly rotated heads, LayerNorms, a gated MLP; one norm where side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.families._decoder import (
    SHARE,
    attention,
    both,
    head_width,
    in_both_places,
    in_layers,
    layer_norm,
    one_norm,
    partly_rotary,
    rope_options,
)
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.block import AnyBlock
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import GatedMLP
from workbench.models.layers.norm import UnbiasedLayerNorm
from workbench.models.transformer import Block, ParallelBlock, Stack

READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads hidden_act max_position_embeddings layer_norm_eps tie_word_embeddings "
    "rope_parameters rope_scaling rope_theta partial_rotary_factor use_qkv_bias qk_layernorm "
    "use_parallel_residual "
    "hidden_dropout attention_dropout".split()  # without effect at inference
)
NAMES = MappingProxyType(
    {
        "model.embed_tokens.weight": "embed.tokens",
        **in_layers(
            "model.layers.{}",
            {
                "input_layernorm": "ln1",
                "post_attention_layernorm": "ln2",
                **{f"self_attn.{part}_proj": f"attn.{part}" for part in "qkvo"},
                **{f"mlp.{part}_proj": f"mlp.{part}" for part in ("gate", "up", "down")},
            },
        ),
        **both({"model.norm": "ln_final"}),
        "lm_head.weight": "unembed.weight",
    }
)


@final
@dataclass(frozen=True)
class StableLM(Family):
    """The StableLM architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes, eps = _sizes(config), config.number("layer_norm_eps", 1e-5)
        options = rope_options(config, base="rope_theta", share=SHARE, usual=0.25)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, config, eps) for layer in range(sizes.n_layers)],
            ln_final=layer_norm(sizes, eps, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=partly_rotary(config, sizes, options),
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        sizes, own = stack.sizes, dict(weights)
        norms: dict[str, Tensor] = {}
        for layer in range(sizes.n_layers):
            for which, n_heads in (("q", sizes.n_heads), ("k", sizes.n_key_value_heads)):
                at = f"model.layers.{layer}.self_attn.{which}_layernorm.norms"
                each = [f"{at}.{head}.weight" for head in range(n_heads)]
                if all(name in own for name in each):  # a norm of its own for each head
                    rows = torch.stack([own.pop(name) for name in each])
                    norms[f"blocks.{layer}.attn.{which}_norm.weight"] = rows
        found = renamed(own, NAMES, sizes.n_layers, (".rotary_emb.inv_freq",))
        return tie(in_both_places({**found, **norms}, stack), stack)


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    n_groups = config.count("num_key_value_heads", default=n_heads)
    if n_heads % n_groups:
        raise OptionError("stablelm: num_attention_heads", f"a multiple of {n_groups}", n_heads)
    return Sizes(
        n_layers=config.layers("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_groups,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=config.count("intermediate_size"),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings", default=4096),
    )


def _block(layer: int, sizes: Sizes, config: Config, eps: float) -> AnyBlock:
    at, bias = in_block(layer), config.flag("use_qkv_bias", default=False)
    q_norm = k_norm = None
    if config.flag("qk_layernorm", default=False):
        of_queries, of_keys = sizes.n_heads, sizes.n_key_value_heads
        q_norm = UnbiasedLayerNorm((of_queries, sizes.d_head), eps, at, "attn.q_norm")
        k_norm = UnbiasedLayerNorm((of_keys, sizes.d_head), eps, at, "attn.k_norm")
    attn = attention(
        layer, sizes, rotary=True, bias=bias, out_bias=False, q_norm=q_norm, k_norm=k_norm
    )
    act = config.activation("hidden_act", "silu")
    mlp = GatedMLP(sizes.d_model, sizes.d_mlp, act, at, bias=False)
    if config.flag("use_parallel_residual", default=False):
        ln1, ln2 = one_norm(sizes, eps, layer)
        return ParallelBlock(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)
    ln1, ln2 = (layer_norm(sizes, eps, name, layer) for name in ("ln1", "ln2"))
    return Block(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


FAMILY = StableLM()
