"""BLOOM: no positions but ALiBi's bias on scores; embeddings are normalised before all blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models.config import Config, gelu_tanh
from workbench.models.families._decoder import (
    apart,
    attention,
    both,
    by_group,
    head_width,
    in_layers,
    layer_norm,
)
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.context import in_block, outside_blocks
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm
from workbench.models.layers.score_bias import Alibi, halving_slopes
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size hidden_size n_embed n_layer num_hidden_layers n_head num_attention_heads "
    "layer_norm_epsilon tie_word_embeddings seq_length "
    # These have no effect on what it says.
    "hidden_dropout attention_dropout pretraining_tp skip_bias_add "
    "skip_bias_add_qkv attention_softmax_in_fp32 bias_dropout_fusion unk_token_id "
    "masked_softmax_fusion offset_alibi".split()
)
# The second is a way of computing that leaves out two biases in transformers.
DEFAULTS = MappingProxyType(
    {"apply_residual_connection_post_layernorm": False, "slow_but_exact": False}
)
NAMES = MappingProxyType(
    {
        "transformer.word_embeddings.weight": "embed.tokens",
        **both({"transformer.word_embeddings_layernorm": "embed.ln"}),
        **in_layers(
            "transformer.h.{}",
            {
                "input_layernorm": "ln1",
                "self_attention.query_key_value": "attn.qkv",
                "self_attention.dense": "attn.o",
                "post_attention_layernorm": "ln2",
                "mlp.dense_h_to_4h": "mlp.up",
                "mlp.dense_4h_to_h": "mlp.down",
            },
        ),
        **both({"transformer.ln_f": "ln_final"}),
        "lm_head.weight": "unembed.weight",
    }
)
N_CTX = 2048  # what it was trained with; nothing in it ends there


@final
@dataclass(frozen=True)
class Bloom(Family):
    """The BLOOM architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        sizes = _sizes(config)
        eps = config.number("layer_norm_epsilon", 1e-5)
        norm = LayerNorm(sizes.d_model, eps, outside_blocks, "embed.ln")
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model, norm=norm),
            blocks=[_block(layer, sizes, eps) for layer in range(sizes.n_layers)],
            ln_final=layer_norm(sizes, eps, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=None,
            tied=config.flag("tie_word_embeddings", default=True),
            score_bias=Alibi(halving_slopes(sizes.n_heads)),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        full = {_full(name): tensor for name, tensor in weights.items()}
        found = renamed(full, NAMES, stack.sizes.n_layers, ())
        return tie(apart(found, weights, by_group(stack.sizes)), stack)


def _full(name: str) -> str:
    """The name with its prefix, which the original checkpoints leave out."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def _sizes(config: Config) -> Sizes:
    d_model = config.count("hidden_size", "n_embed")
    n_heads = config.count("n_head", "num_attention_heads")
    return Sizes(
        n_layers=config.layers("n_layer" if "n_layer" in config.values else "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=4 * d_model,
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("seq_length", default=N_CTX),
    )


def _block(layer: int, sizes: Sizes, eps: float) -> Block:
    at = in_block(layer)
    attn = attention(layer, sizes, bias=True, out_bias=True)
    mlp = MLP(sizes.d_model, sizes.d_mlp, gelu_tanh, at, bias=True)
    ln1, ln2 = (layer_norm(sizes, eps, name, layer) for name in ("ln1", "ln2"))
    return Block(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


FAMILY = Bloom()
