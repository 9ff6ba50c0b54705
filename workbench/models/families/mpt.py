"""MPT: no positions but ALiBi's bias on scores; no biases at all; joint queries, keys, values."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast, final

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.families._decoder import apart, head_width, in_blocks_of_rows
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import in_block, outside_blocks
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import BiaslessLayerNorm
from workbench.models.layers.score_bias import Alibi, halving_slopes
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size d_model hidden_size n_heads num_attention_heads n_layers num_hidden_layers "
    "max_seq_len layer_norm_epsilon tie_word_embeddings attn_config "
    # These have no effect on what it says.
    "resid_pdrop emb_pdrop learned_pos_emb init_device embedding_fraction norm_type "
    "expansion_ratio".split()
)
DEFAULTS = MappingProxyType({"no_bias": True, "logit_scale": None})
READ_OF_ATTENTION = frozenset(
    "clip_qkv softmax_scale attn_pdrop attn_impl attn_uses_sequence_id".split()
)
DEFAULTS_OF_ATTENTION = MappingProxyType(
    {
        "attn_type": "multihead_attention",
        "prefix_lm": False,
        "qk_ln": False,
        "alibi": True,
        "alibi_bias_max": 8,  # of others transformers says something else than their authors
    }
)
NAMES = MappingProxyType(
    {
        "transformer.wte.weight": "embed.tokens",
        "transformer.blocks.{}.norm_1.weight": "blocks.{}.ln1.weight",
        "transformer.blocks.{}.attn.Wqkv.weight": "blocks.{}.attn.qkv.weight",
        "transformer.blocks.{}.attn.out_proj.weight": "blocks.{}.attn.o.weight",
        "transformer.blocks.{}.norm_2.weight": "blocks.{}.ln2.weight",
        "transformer.blocks.{}.ffn.up_proj.weight": "blocks.{}.mlp.up.weight",
        "transformer.blocks.{}.ffn.down_proj.weight": "blocks.{}.mlp.down.weight",
        "transformer.norm_f.weight": "ln_final.weight",
        "lm_head.weight": "unembed.weight",
    }
)


@final
@dataclass(frozen=True)
class Mpt(Family):
    """The MPT architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        inner, sizes = _attention_config(config), _sizes(config)
        eps = config.number("layer_norm_epsilon", 1e-5)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, eps, inner) for layer in range(sizes.n_layers)],
            ln_final=BiaslessLayerNorm(sizes.d_model, eps, outside_blocks, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=None,
            tied=config.flag("tie_word_embeddings", default=True),
            score_bias=Alibi(halving_slopes(sizes.n_heads)),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, ())
        return tie(apart(found, weights, in_blocks_of_rows(stack.sizes)), stack)


def _attention_config(config: Config) -> Config:
    """The table of attention's own options.

    Raises:
        OptionError: If it is no table.
        UnknownConfigKeyError: If it has a key that would change the forward unheard.
    """
    given: object = config.values.get("attn_config") or {}
    if not isinstance(given, Mapping):
        raise OptionError("mpt: config key 'attn_config'", "a table", given)
    inner = Config(config.family, cast("Mapping[str, Any]", given))
    inner.finish(READ_OF_ATTENTION, DEFAULTS_OF_ATTENTION)
    return inner


def _sizes(config: Config) -> Sizes:
    d_model = config.count("d_model", "hidden_size")
    n_heads = config.count("n_heads", "num_attention_heads")
    return Sizes(
        n_layers=config.layers("n_layers" if "n_layers" in config.values else "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=4 * d_model,
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_seq_len", default=2048),
    )


def _block(layer: int, sizes: Sizes, eps: float, inner: Config) -> Block:
    at = in_block(layer)
    attn = Attention(
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_heads,
        sizes.d_head,
        at,
        scale=_or_none(inner, "softmax_scale") or sizes.d_head**-0.5,
        rotary=False,
        bias=False,
        out_bias=False,
        clip=_or_none(inner, "clip_qkv") or None,  # 0 is none
    )
    mlp = MLP(sizes.d_model, sizes.d_mlp, F.gelu, at, bias=False)
    ln1, ln2 = (BiaslessLayerNorm(sizes.d_model, eps, at, name) for name in ("ln1", "ln2"))
    return Block(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


def _or_none(config: Config, name: str) -> float | None:
    return None if config.values.get(name) is None else config.number(name, 0.0)


FAMILY = Mpt()
