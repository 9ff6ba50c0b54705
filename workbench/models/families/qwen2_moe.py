"""Qwen2-MoE: Qwen2's blocks with experts, one of which every token shares.

The sites of a layer's neurons are those of the shared expert.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models import mixtures, modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.context import in_block
from workbench.models.layers.experts import Experts, GatedExpert, SharedExpert
from workbench.models.layers.mlp import FeedForward
from workbench.models.transformer import Block, Stack

READ = (
    modern.WINDOWED
    | mixtures.READ
    | frozenset(
        "use_sliding_window max_window_layers decoder_sparse_step moe_intermediate_size "
        "shared_expert_intermediate_size num_experts norm_topk_prob mlp_only_layers "
        "qkv_bias".split()
    )
)
PARTS = (
    *modern.QKVO,
    *modern.PRE_NORMS,
    *modern.GATED,
    ("mlp.gate", "mlp.router"),
    ("mlp.shared_expert_gate", "mlp.shared.gate"),
    *((f"mlp.shared_expert.{m}_proj", f"mlp.shared.mlp.{m}") for m in mixtures.MATRICES),
)


@final
@dataclass(frozen=True)
class Qwen2MoE(Family):
    """The Qwen1.5-MoE and Qwen2-MoE architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        if mixtures.is_all_sparse(config):
            sizes = replace(sizes, d_mlp=config.count("shared_expert_intermediate_size"))
        windows = _windows(config, sizes.n_layers)
        blocks = [_block(layer, sizes, config, window) for layer, window in enumerate(windows)]
        return modern.stack(config, sizes, blocks, rope)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        table = modern.names(*PARTS, *mixtures.expert_parts(stack))
        return modern.converted(mixtures.apart(weights), table, stack)


def _windows(config: Config, n_layers: int) -> tuple[int | None, ...]:
    if not config.flag("use_sliding_window", default=False):
        return (None,) * n_layers
    before = config.count("max_window_layers", default=28)
    return modern.windows(config, [layer % 2 == 0 and layer < before for layer in range(n_layers)])


def _block(layer: int, sizes: Sizes, config: Config, window: int | None) -> Block:
    bias = config.flag("qkv_bias", default=True)
    return Block(
        in_block(layer),
        ln1=modern.norm(config, sizes.d_model, "ln1", layer),
        attn=modern.heads(layer, sizes)(rotary=True, bias=bias, out_bias=False, window=window),
        ln2=modern.norm(config, sizes.d_model, "ln2", layer),
        mlp=_feed(layer, sizes, config),
    )


def _feed(layer: int, sizes: Sizes, config: Config) -> FeedForward:
    if not mixtures.is_sparse(config, layer):
        return modern.gated(layer, sizes, config, d_mlp=config.count("intermediate_size"))
    at, act = in_block(layer), config.activation("hidden_act", "silu")
    width = config.count("moe_intermediate_size", default=1408)
    count = config.count("num_experts", default=60)
    experts = [GatedExpert(sizes.d_model, width, act) for _ in range(count)]
    k = config.count("num_experts_per_tok", default=4)
    shared = config.count("shared_expert_intermediate_size", default=5632)
    every = SharedExpert(sizes.d_model, modern.gated(layer, sizes, config, d_mlp=shared))
    choose = mixtures.choice(config)
    return Experts(sizes.d_model, experts, at, k=k, choose=choose, shared=every)


FAMILY = Qwen2MoE()
