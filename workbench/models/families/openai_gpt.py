"""The first GPT: norms after what is added, learned positions; matrices transposed as in GPT-2."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import UnknownNameError
from workbench.core.protocols import Sizes
from workbench.models.config import Activation, Config, gelu_tanh
from workbench.models.families._decoder import (
    apart,
    attention,
    by_columns,
    head_width,
    in_layers,
    layer_norm,
    turned,
)
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import NoNorm
from workbench.models.layers.post_norm import PostNormBlock
from workbench.models.transformer import Stack

READ = frozenset(
    "vocab_size n_embd n_layer n_head n_positions n_ctx afn layer_norm_epsilon "
    "tie_word_embeddings "
    "resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels summary_first_dropout n_special predict_special_tokens".split()
)
NAMES = MappingProxyType(
    {
        "transformer.tokens_embed.weight": "embed.tokens",
        "transformer.positions_embed.weight": "embed.positions",
        **in_layers(
            "transformer.h.{}",
            {
                "attn.c_attn": "attn.qkv",
                "attn.c_proj": "attn.o",
                "ln_1": "ln1",
                "mlp.c_fc": "mlp.up",
                "mlp.c_proj": "mlp.down",
                "ln_2": "ln2",
            },
        ),
        "lm_head.weight": "unembed.weight",
    }
)
IGNORED = (".attn.bias", ".attn.masked_bias", "transformer.position_ids")
TRANSPOSED = ("attn.o.weight", "mlp.up.weight", "mlp.down.weight")
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"relu": F.relu, "silu": F.silu, "swish": F.silu, "gelu": gelu_tanh}  # it has no other GELU
)


@final
@dataclass(frozen=True)
class OpenAIGPT(Family):
    """The architecture of GPT."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes = _sizes(config)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model, sizes.n_ctx),
            blocks=[_block(layer, sizes, config) for layer in range(sizes.n_layers)],
            ln_final=NoNorm(),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=None,
            tied=config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        full = {_full(name): tensor for name, tensor in weights.items()}
        found = renamed(full, NAMES, stack.sizes.n_layers, IGNORED)
        return tie(turned(apart(found, weights, by_columns), TRANSPOSED), stack)


def _full(name: str) -> str:
    """The name with its prefix, which the original checkpoints leave out."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("n_embd"), config.count("n_head")
    return Sizes(
        n_layers=config.layers("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=4 * d_model,
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("n_positions", "n_ctx", default=512),
    )


def _block(layer: int, sizes: Sizes, config: Config) -> PostNormBlock:
    eps = config.number("layer_norm_epsilon", 1e-5)
    attn = attention(layer, sizes, bias=True, out_bias=True)
    mlp = MLP(sizes.d_model, sizes.d_mlp, _activation(config), in_block(layer), bias=True)
    ln1, ln2 = (layer_norm(sizes, eps, name, layer) for name in ("ln1", "ln2"))
    return PostNormBlock(in_block(layer), attn=attn, ln1=ln1, mlp=mlp, ln2=ln2)


def _activation(config: Config) -> Activation:
    wanted = str(config.values.get("afn", "gelu"))
    if wanted not in ACTIVATIONS:
        raise UnknownNameError("activation function", wanted, ACTIVATIONS)
    return ACTIVATIONS[wanted]


FAMILY = OpenAIGPT()
