"""Phi-1, 1.5 and 2: attention and feed-forward read one norm; biases everywhere; half rotated."""

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
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm
from workbench.models.transformer import ParallelBlock, Stack

READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads hidden_act max_position_embeddings layer_norm_eps tie_word_embeddings "
    "rope_parameters rope_scaling rope_theta partial_rotary_factor qk_layernorm "
    "resid_pdrop embd_pdrop attention_dropout".split()  # without effect at inference
)
NAMES = MappingProxyType(
    {
        "model.embed_tokens.weight": "embed.tokens",
        **in_layers(
            "model.layers.{}",
            {
                "input_layernorm": "ln1",
                "self_attn.q_proj": "attn.q",
                "self_attn.k_proj": "attn.k",
                "self_attn.v_proj": "attn.v",
                "self_attn.q_layernorm": "attn.q_norm",
                "self_attn.k_layernorm": "attn.k_norm",
                "self_attn.dense": "attn.o",
                "mlp.fc1": "mlp.up",
                "mlp.fc2": "mlp.down",
            },
        ),
        **both({"model.final_layernorm": "ln_final", "lm_head": "unembed"}),
    }
)


@final
@dataclass(frozen=True)
class Phi(Family):
    """The Phi architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes, eps = _sizes(config), config.number("layer_norm_eps", 1e-5)
        options = rope_options(config, base="rope_theta", share=SHARE, usual=0.5)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, config, eps) for layer in range(sizes.n_layers)],
            ln_final=layer_norm(sizes, eps, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab, bias=True),
            rotary=partly_rotary(config, sizes, options),
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, (".rotary_emb.inv_freq",))
        return tie(in_both_places(found, stack), stack)


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    n_groups = config.count("num_key_value_heads", default=n_heads)
    if n_heads % n_groups:
        raise OptionError("phi: num_attention_heads", f"a multiple of {n_groups}", n_heads)
    return Sizes(
        n_layers=config.layers("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_groups,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=config.count("intermediate_size"),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings", default=2048),
    )


def _block(layer: int, sizes: Sizes, config: Config, eps: float) -> ParallelBlock:
    at, act = in_block(layer), config.activation("hidden_act", "gelu_new")
    q_norm = k_norm = None
    if config.flag("qk_layernorm", default=False):
        q_norm = LayerNorm(sizes.d_head, eps, at, "attn.q_norm")
        k_norm = LayerNorm(sizes.d_head, eps, at, "attn.k_norm")
    attn = attention(
        layer, sizes, rotary=True, bias=True, out_bias=True, q_norm=q_norm, k_norm=k_norm
    )
    mlp = MLP(sizes.d_model, sizes.d_mlp, act, at, bias=True)
    ln1, ln2 = one_norm(sizes, eps, layer)
    return ParallelBlock(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


FAMILY = Phi()
