"""Qwen3-MoE: Qwen3's blocks with experts in all or some layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models import mixtures, modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.context import in_block
from workbench.models.layers.experts import Experts, GatedExpert
from workbench.models.layers.mlp import FeedForward
from workbench.models.transformer import Block, Stack

READ = (
    modern.READ
    | mixtures.READ
    | frozenset(
        "head_dim attention_bias sliding_window use_sliding_window decoder_sparse_step num_experts "
        "moe_intermediate_size norm_topk_prob mlp_only_layers "
        "num_local_experts max_window_layers".split()
    )
)  # the last is read by nobody
PARTS = (
    *modern.QKVO,
    *modern.QK_NORMS,
    *modern.PRE_NORMS,
    *modern.GATED,
    ("mlp.gate", "mlp.router"),
)


@final
@dataclass(frozen=True)
class Qwen3MoE(Family):
    """The Qwen3-MoE architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        blocks = [_block(layer, sizes, config) for layer in range(sizes.n_layers)]
        return modern.stack(config, sizes, blocks, rope)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        table = modern.names(*PARTS, *mixtures.expert_parts(stack))
        return modern.converted(mixtures.apart(weights), table, stack)


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    bias, windowed = modern.flags(config, "attention_bias", "use_sliding_window")
    attention = modern.heads(layer, sizes)(
        rotary=True,
        bias=bias,
        out_bias=bias,
        window=modern.width(config) if windowed else None,
        q_norm=modern.norm(config, sizes.d_head, "attn.q_norm", layer),
        k_norm=modern.norm(config, sizes.d_head, "attn.k_norm", layer),
    )
    return Block(
        in_block(layer),
        ln1=modern.norm(config, sizes.d_model, "ln1", layer),
        attn=attention,
        ln2=modern.norm(config, sizes.d_model, "ln2", layer),
        mlp=_feed(layer, sizes, config),
    )


def _feed(layer: int, sizes: Sizes, config: Config) -> FeedForward:
    if not mixtures.is_sparse(config, layer):
        return modern.gated(layer, sizes, config, d_mlp=config.count("intermediate_size"))
    at, act = in_block(layer), config.activation("hidden_act", "silu")
    width = config.count("moe_intermediate_size", default=768)
    count = config.count("num_experts", "num_local_experts", default=128)
    experts = [GatedExpert(sizes.d_model, width, act) for _ in range(count)]
    k = config.count("num_experts_per_tok", default=8)
    return Experts(sizes.d_model, experts, at, k=k, choose=mixtures.choice(config))


FAMILY = Qwen3MoE()
