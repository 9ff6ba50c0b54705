"""GPT-2: LayerNorm, learned positions; queries, keys and values in one matrix, transposed."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import in_block, outside_blocks
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size n_embd n_inner n_layer n_head n_positions n_ctx activation_function "
    "layer_norm_epsilon scale_attn_weights scale_attn_by_inverse_layer_idx tie_word_embeddings "
    "resid_pdrop embd_pdrop attn_pdrop reorder_and_upcast_attn".split()  # no effect at inference
    + "summary_type summary_use_proj summary_activation summary_proj_to_labels".split()
    + ["summary_first_dropout"]
)
NAMES = MappingProxyType(
    {
        "transformer.wte.weight": "embed.tokens",
        "transformer.wpe.weight": "embed.positions",
        **{
            f"transformer.h.{{}}.{old}.{kind}": f"blocks.{{}}.{new}.{kind}"
            for old, new in (
                ("ln_1", "ln1"),
                ("ln_2", "ln2"),
                ("attn.c_attn", "attn.qkv"),
                ("attn.c_proj", "attn.o"),
                ("mlp.c_fc", "mlp.up"),
                ("mlp.c_proj", "mlp.down"),
            )
            for kind in ("weight", "bias")
        },
        "transformer.ln_f.weight": "ln_final.weight",
        "transformer.ln_f.bias": "ln_final.bias",
        "lm_head.weight": "unembed.weight",
    }
)
IGNORED = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored as a buffer
TRANSPOSED = ("attn.o.weight", "mlp.up.weight", "mlp.down.weight")


@final
@dataclass(frozen=True)
class GPT2(Family):
    """The GPT-2 architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes = _sizes(config)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model, sizes.n_ctx),
            blocks=[_block(layer, sizes, config) for layer in range(sizes.n_layers)],
            ln_final=_norm(sizes, config, "ln_final", None),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=None,
            tied=config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        full = {_full(name): tensor for name, tensor in weights.items()}
        found = renamed(full, NAMES, stack.sizes.n_layers, IGNORED)
        for name in [name for name in found if ".attn.qkv." in name]:
            found.update(_split(name, found.pop(name)))
        for name in found:
            if name.endswith(TRANSPOSED):
                found[name] = found[name].t()
        return tie(found, stack)


def _full(name: str) -> str:
    """The name with its prefix, which the original checkpoints leave out."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def _split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Query, key and value parts of the joint matrix (d_model, 3 d_model) or bias, as views."""
    thirds = tensor.chunk(3, dim=-1)
    parts = [part.t() if part.ndim > 1 else part for part in thirds]
    return {name.replace(".qkv.", f".{which}."): p for which, p in zip("qkv", parts, strict=True)}


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("n_embd"), config.count("n_head")
    if d_model % n_heads:
        raise OptionError("gpt2: n_embd", f"a multiple of n_head = {n_heads}", d_model)
    return Sizes(
        n_layers=config.layers("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=config.count("n_inner", default=4 * d_model),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("n_positions", "n_ctx", default=1024),
    )


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    at = in_block(layer)
    scale = sizes.d_head**-0.5 if config.flag("scale_attn_weights", default=True) else 1.0
    if config.flag("scale_attn_by_inverse_layer_idx", default=False):
        scale /= layer + 1
    attention = Attention(
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_heads,
        sizes.d_head,
        at,
        scale=scale,
        rotary=False,
        bias=True,
        out_bias=True,
    )
    act = config.activation("activation_function", "gelu_new")
    mlp = MLP(sizes.d_model, sizes.d_mlp, act, at, bias=True)
    ln1, ln2 = _norm(sizes, config, "ln1", layer), _norm(sizes, config, "ln2", layer)
    return Block(at, ln1=ln1, attn=attention, ln2=ln2, mlp=mlp)


def _norm(sizes: Sizes, config: Config, name: str, layer: int | None) -> LayerNorm:
    at = outside_blocks if layer is None else in_block(layer)
    return LayerNorm(sizes.d_model, config.number("layer_norm_epsilon", 1e-5), at, name)


FAMILY = GPT2()
