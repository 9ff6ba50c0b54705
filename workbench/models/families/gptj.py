"""GPT-J: attention and feed-forward read one norm; neighbours are rotated, the unembedding biased.

Notable: the one norm stands in both places, `ln1` and `ln2`, with the same weights, as in the
classic interface; so a change to what attention reads leaves the neurons alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.families._decoder import (
    attention,
    both,
    head_width,
    in_both_places,
    in_layers,
    layer_norm,
    neighbours,
    one_norm,
)
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.layers.positions import rotate_neighbours
from workbench.models.transformer import ParallelBlock, Stack

READ = frozenset(
    "vocab_size n_embd n_inner n_layer n_head n_positions rotary_dim activation_function "
    "layer_norm_epsilon tie_word_embeddings "
    "resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels summary_first_dropout".split()  # from here on without effect
)
DEFAULTS = MappingProxyType({"rotary": True, "scale_attn_weights": True})
NAMES = MappingProxyType(
    {
        "transformer.wte.weight": "embed.tokens",
        **in_layers(
            "transformer.h.{}",
            {
                "ln_1": "ln1",
                "attn.q_proj": "attn.q",
                "attn.k_proj": "attn.k",
                "attn.v_proj": "attn.v",
                "attn.out_proj": "attn.o",
                "mlp.fc_in": "mlp.up",
                "mlp.fc_out": "mlp.down",
            },
        ),
        **both({"transformer.ln_f": "ln_final", "lm_head": "unembed"}),
    }
)
IGNORED = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored as a buffer


@final
@dataclass(frozen=True)
class GPTJ(Family):
    """The GPT-J architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        sizes = _sizes(config)
        eps = config.number("layer_norm_epsilon", 1e-5)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, config, eps) for layer in range(sizes.n_layers)],
            ln_final=layer_norm(sizes, eps, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab, bias=True),
            rotary=neighbours(config, sizes.d_head),
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, IGNORED)
        return tie(in_both_places(found, stack), stack)


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("n_embd"), config.count("n_head")
    return Sizes(
        n_layers=config.layers("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=config.count("n_inner", default=4 * d_model),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("n_positions", default=2048),
    )


def _block(layer: int, sizes: Sizes, config: Config, eps: float) -> ParallelBlock:
    at, act = in_block(layer), config.activation("activation_function", "gelu_new")
    attn = attention(layer, sizes, rotary=True, bias=False, out_bias=False, turn=rotate_neighbours)
    mlp = MLP(sizes.d_model, sizes.d_mlp, act, at, bias=True)
    ln1, ln2 = one_norm(sizes, eps, layer)
    return ParallelBlock(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


FAMILY = GPTJ()
