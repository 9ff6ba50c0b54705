"""GPT-Neo: GPT-2 whose scores are not divided, and whose every other layer has a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast, final

from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.config import Config
from workbench.models.families._decoder import attention, both, head_width, in_layers, layer_norm
from workbench.models.family import Family, renamed, tie
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import MLP
from workbench.models.transformer import Block, Stack

READ = frozenset(
    "vocab_size hidden_size intermediate_size num_layers num_heads max_position_embeddings "
    "attention_types attention_layers window_size activation_function layer_norm_epsilon "
    "tie_word_embeddings "
    "resid_dropout embed_dropout attention_dropout classifier_dropout summary_type "
    "summary_use_proj summary_activation summary_proj_to_labels "
    "summary_first_dropout".split()  # from dropouts on without effect
)
NAMES = MappingProxyType(
    {
        "transformer.wte.weight": "embed.tokens",
        "transformer.wpe.weight": "embed.positions",
        **in_layers(
            "transformer.h.{}",
            {
                "ln_1": "ln1",
                "attn.attention.q_proj": "attn.q",
                "attn.attention.k_proj": "attn.k",
                "attn.attention.v_proj": "attn.v",
                "attn.attention.out_proj": "attn.o",
                "ln_2": "ln2",
                "mlp.c_fc": "mlp.up",
                "mlp.c_proj": "mlp.down",
            },
        ),
        **both({"transformer.ln_f": "ln_final"}),
        "lm_head.weight": "unembed.weight",
    }
)
IGNORED = (".attention.bias", ".attention.masked_bias")  # the causal mask, stored as a buffer
USUAL = [[["global", "local"], 12]]


@final
@dataclass(frozen=True)
class GPTNeo(Family):
    """The GPT-Neo architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        sizes = _sizes(config)
        kinds, eps = _kinds(config, sizes), config.number("layer_norm_epsilon", 1e-5)
        return Stack(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model, sizes.n_ctx),
            blocks=[_block(n, sizes, config, kind, eps) for n, kind in enumerate(kinds)],
            ln_final=layer_norm(sizes, eps, "ln_final"),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab),
            rotary=None,
            tied=config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return tie(renamed(weights, NAMES, stack.sizes.n_layers, IGNORED), stack)


def _sizes(config: Config) -> Sizes:
    d_model, n_heads = config.count("hidden_size"), config.count("num_heads")
    return Sizes(
        n_layers=config.layers("num_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=head_width(config, d_model, n_heads),
        d_mlp=config.count("intermediate_size", default=4 * d_model),
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings", default=2048),
    )


def _kinds(config: Config, sizes: Sizes) -> tuple[str, ...]:
    """What each layer looks at: "global" or "local".

    Raises:
        OptionError: If that is not told of each layer.
    """
    told: object = config.values.get("attention_types") or USUAL
    kinds: list[str] = []
    for item in cast("Sequence[object]", told) if isinstance(told, list | tuple) else ():
        match item:
            case [[*names], int(times)]:
                kinds += [str(name) for name in cast("list[object]", names)] * times
            case _:
                kinds.append(str(item))
    if len(kinds) != sizes.n_layers or not {"global", "local"}.issuperset(kinds):
        allowed = f"'global' or 'local' for each of {sizes.n_layers} layers"
        raise OptionError("gpt_neo: config key 'attention_types'", allowed, told)
    return tuple(kinds)


def _block(layer: int, sizes: Sizes, config: Config, kind: str, eps: float) -> Block:
    at, act = in_block(layer), config.activation("activation_function", "gelu_new")
    window = config.count("window_size", default=256) if kind == "local" else None
    attn = attention(layer, sizes, bias=False, out_bias=True, scale=1.0, window=window)
    mlp = MLP(sizes.d_model, sizes.d_mlp, act, at, bias=True)
    ln1, ln2 = (layer_norm(sizes, eps, name, layer) for name in ("ln1", "ln2"))
    return Block(at, ln1=ln1, attn=attn, ln2=ln2, mlp=mlp)


FAMILY = GPTNeo()
