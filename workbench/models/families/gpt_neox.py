"""GPT-NeoX and Pythia: attention and feed-forward side by side, a quarter of each head rotated."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.families._decoder import (
    apart,
    attention,
    both,
    by_group,
    head_width,
    in_layers,
    layer_norm,
    partly_rotary,
)
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.block import AnyBlock
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.transformer import Block, ParallelBlock, Stack

READ = frozenset(
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "max_position_embeddings layer_norm_eps tie_word_embeddings use_parallel_residual "
    "attention_bias rope_parameters rope_scaling rope_theta rotary_emb_base rotary_pct "
    "attention_dropout hidden_dropout classifier_dropout".split()  # these do not act at inference
)
NAMES = MappingProxyType(
    {
        "gpt_neox.embed_in.weight": "embed.tokens",
        **in_layers(
            "gpt_neox.layers.{}",
            {
                "input_layernorm": "ln1",
                "post_attention_layernorm": "ln2",
                "attention.query_key_value": "attn.qkv",
                "attention.dense": "attn.o",
                "mlp.dense_h_to_4h": "mlp.up",
                "mlp.dense_4h_to_h": "mlp.down",
            },
        ),
        **both({"gpt_neox.final_layer_norm": "ln_final"}),
        "lm_head.weight": "unembed.weight",
        "embed_out.weight": "unembed.weight",  # as checkpoints have it
    }
)
# The causal mask and the frequencies, stored as buffers.
IGNORED = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


@final
@dataclass(frozen=True)
class GPTNeoX(Family):
    """The GPT-NeoX architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes = _sizes(config)
        eps = config.number("layer_norm_eps", 1e-5)
        rotary = partly_rotary(
            config, sizes.d_head, base="rotary_emb_base", share="rotary_pct", usual=0.25
        )
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, config, eps) for layer in range(sizes.n_layers)],
            ln_final=layer_norm(sizes, eps, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=rotary,
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, IGNORED)
        return tie(apart(found, weights, by_group(stack.sizes)), stack)


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    return Sizes(
        n_layers=config.layers("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=config.count("intermediate_size"),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings", default=2048),
    )


def _block(layer: int, sizes: Sizes, config: Config, eps: float) -> AnyBlock:
    at, bias = in_block(layer), config.flag("attention_bias", default=True)
    attn = attention(layer, sizes, rotary=True, bias=bias, out_bias=bias)
    mlp = MLP(sizes.d_model, sizes.d_mlp, config.activation("hidden_act", "gelu"), at, bias=True)
    parallel = config.flag("use_parallel_residual", default=True)
    kind = ParallelBlock if parallel else Block
    ln1, ln2 = (layer_norm(sizes, eps, name, layer) for name in ("ln1", "ln2"))
    return kind(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


FAMILY = GPTNeoX()
