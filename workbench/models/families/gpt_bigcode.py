"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one head of keys and values for all queries."""

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
    in_blocks_of_rows,
    in_layers,
    layer_norm,
)
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size n_embd n_inner n_layer n_head n_positions activation_function layer_norm_epsilon "
    "scale_attn_weights multi_query num_key_value_heads tie_word_embeddings "
    "resid_pdrop embd_pdrop attn_pdrop attention_softmax_in_fp32 scale_attention_softmax_in_fp32 "
    "inference_runner validate_runner_input pre_allocate_kv_cache max_sequence_length "
    "max_batch_size pad_key_length summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels summary_first_dropout".split()  # from dropouts on without effect
)
NAMES = MappingProxyType(
    {
        "transformer.wte.weight": "embed.tokens",
        "transformer.wpe.weight": "embed.positions",
        **in_layers(
            "transformer.h.{}",
            {
                "ln_1": "ln1",
                "attn.c_attn": "attn.qkv",
                "attn.c_proj": "attn.o",
                "ln_2": "ln2",
                "mlp.c_fc": "mlp.up",
                "mlp.c_proj": "mlp.down",
            },
        ),
        **both({"transformer.ln_f": "ln_final"}),
        "lm_head.weight": "unembed.weight",
    }
)
IGNORED = (".attn.bias", ".attn.masked_bias", "transformer.bias")


@final
@dataclass(frozen=True)
class GPTBigCode(Family):
    """The GPT-BigCode architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes = _sizes(config)
        eps = config.number("layer_norm_epsilon", 1e-5)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model, sizes.n_ctx),
            blocks=[_block(layer, sizes, config, eps) for layer in range(sizes.n_layers)],
            ln_final=layer_norm(sizes, eps, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=None,
            tied=config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, IGNORED)
        shared = stack.sizes.n_key_value_heads < stack.sizes.n_heads
        cut = in_blocks_of_rows(stack.sizes) if shared else by_group(stack.sizes)
        return tie(apart(found, weights, cut), stack)


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("n_embd"), config.count("n_head")
    return Sizes(
        n_layers=config.layers("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=_groups(config, n_heads),
        d_head=head_width(config, d_model, n_heads),
        d_mlp=config.count("n_inner", default=4 * d_model),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("n_positions", default=1024),
    )


def _groups(config: Config, n_heads: int) -> int:
    """One group of heads or as many as heads.

    Raises:
        OptionError: If two keys of the config say different things of it.
    """
    groups = 1 if config.flag("multi_query", default=True) else n_heads
    told = config.count("num_key_value_heads", default=groups)
    if told != groups:
        allowed = f"{groups}, as multi_query has it"
        raise OptionError("gpt_bigcode: config key 'num_key_value_heads'", allowed, told)
    return groups


def _block(layer: int, sizes: Sizes, config: Config, eps: float) -> Block:
    at, act = in_block(layer), config.activation("activation_function", "gelu_pytorch_tanh")
    scale = sizes.d_head**-0.5 if config.flag("scale_attn_weights", default=True) else 1.0
    attn = attention(layer, sizes, bias=True, out_bias=True, scale=scale)
    mlp = MLP(sizes.d_model, sizes.d_mlp, act, at, bias=True)
    ln1, ln2 = (layer_norm(sizes, eps, name, layer) for name in ("ln1", "ln2"))
    return Block(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


FAMILY = GPTBigCode()
