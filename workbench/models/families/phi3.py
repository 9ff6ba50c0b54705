"""Phi-3 and 4: Llama with joint matrices, a window where the config has one, and long rotations."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.families._decoder import (
    SHARE,
    apart,
    attention,
    head_width,
    in_blocks_of_rows,
    in_layers,
    partly_rotary,
    rope_options,
)
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.context import in_block, outside_blocks
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import GatedMLP
from workbench.models.layers.norm import RMSNorm
from workbench.models.layers.positions import ORIGINAL
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads hidden_act max_position_embeddings original_max_position_embeddings "
    "rms_norm_eps tie_word_embeddings rope_parameters rope_scaling rope_theta "
    "partial_rotary_factor sliding_window "
    "resid_pdrop embd_pdrop attention_dropout".split()  # without effect at inference
)
DEFAULTS = MappingProxyType({"attention_bias": False, "mlp_bias": False})
NAMES = MappingProxyType(
    {
        "model.embed_tokens.weight": "embed.tokens",
        **in_layers(
            "model.layers.{}",
            {
                "input_layernorm": "ln1",
                "post_attention_layernorm": "ln2",
                "self_attn.qkv_proj": "attn.qkv",
                "self_attn.o_proj": "attn.o",
                "mlp.gate_up_proj": "mlp.gate_up",
                "mlp.down_proj": "mlp.down",
            },
        ),
        "model.norm.weight": "ln_final.weight",
        "lm_head.weight": "unembed.weight",
    }
)
LONG = ("su", "yarn")  # older names of what is called longrope now


@final
@dataclass(frozen=True)
class Phi3(Family):
    """The Phi-3 architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        sizes = _sizes(config)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            blocks=[_block(layer, sizes, config) for layer in range(sizes.n_layers)],
            ln_final=_norm(sizes, config, "ln_final", None),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=partly_rotary(config, sizes, _options(config)),
            tied=config.flag("tie_word_embeddings", default=False),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        found = renamed(weights, NAMES, stack.sizes.n_layers, (".rotary_emb.inv_freq",))
        found = apart(found, weights, in_blocks_of_rows(stack.sizes))
        for name in [name for name in found if ".mlp.gate_up." in name]:
            gate, up = found.pop(name).chunk(2, 0)
            found[name.replace("gate_up", "gate")], found[name.replace("gate_up", "up")] = gate, up
        return tie(found, stack)


def _options(config: Config) -> Mapping[str, Any]:
    """The rotation's options; the length it was trained for may stand outside of them."""
    options = rope_options(config, base="rope_theta", share=SHARE, usual=1.0)
    kind = options.pop("type", None) or options.get("rope_type", "default")
    options["rope_type"] = "longrope" if kind in LONG else kind
    original = options.pop(ORIGINAL, None) or config.values.get(ORIGINAL)
    return {**options, ORIGINAL: original} if options["rope_type"] == "longrope" else options


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    n_groups = config.count("num_key_value_heads", default=n_heads)
    if n_heads % n_groups:
        raise OptionError("phi3: num_attention_heads", f"a multiple of {n_groups}", n_heads)
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


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    at, windowed = in_block(layer), config.values.get("sliding_window") is not None
    window = config.count("sliding_window") if windowed else None
    attn = attention(layer, sizes, rotary=True, bias=False, out_bias=False, window=window)
    act = config.activation("hidden_act", "silu")
    mlp = GatedMLP(sizes.d_model, sizes.d_mlp, act, at, bias=False)
    ln1, ln2 = (_norm(sizes, config, name, layer) for name in ("ln1", "ln2"))
    return Block(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


def _norm(sizes: Sizes, config: Config, name: str, layer: int | None) -> RMSNorm:
    at = outside_blocks if layer is None else in_block(layer)
    return RMSNorm(sizes.d_model, config.number("rms_norm_eps", 1e-5), at, name)


FAMILY = Phi3()
