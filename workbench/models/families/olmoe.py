"""OLMoE: Llama's blocks with q/k norms over all heads together, and experts in every layer."""

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
from workbench.models.layers.norm import OverHeadsRMSNorm
from workbench.models.transformer import Block, Stack

READ = modern.READ | mixtures.READ | {"head_dim", "attention_bias", "num_experts", "norm_topk_prob"}
DEFAULTS: Mapping[str, object] = {"clip_qkv": None}
PARTS = (*modern.QKVO, *modern.QK_NORMS, *modern.PRE_NORMS, ("mlp.gate", "mlp.router"))


@final
@dataclass(frozen=True)
class OLMoE(Family):
    """The OLMoE architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        rope = modern.rope_of(config)
        sizes = modern.sizes_of(config, rope)
        blocks = [_block(layer, sizes, config) for layer in range(sizes.n_layers)]
        return modern.stack(config, sizes, blocks, rope, eps=1e-5)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        table = modern.names(*PARTS, *mixtures.expert_parts(stack))
        return modern.converted(mixtures.apart(weights), table, stack)


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    at, bias = in_block(layer), config.flag("attention_bias", default=False)
    eps, d_head = config.number("rms_norm_eps", 1e-5), sizes.d_head
    attention = modern.heads(layer, sizes)(
        rotary=True,
        bias=bias,
        out_bias=bias,
        q_norm=OverHeadsRMSNorm(sizes.n_heads * d_head, eps, at, "attn.q_norm"),
        k_norm=OverHeadsRMSNorm(sizes.n_key_value_heads * d_head, eps, at, "attn.k_norm"),
    )
    act, count = config.activation("hidden_act", "silu"), config.count("num_experts", default=64)
    experts = [GatedExpert(sizes.d_model, sizes.d_mlp, act) for _ in range(count)]
    k = config.count("num_experts_per_tok", default=8)
    return Block(
        at,
        ln1=modern.norm(config, sizes.d_model, "ln1", layer, 1e-5),
        attn=attention,
        ln2=modern.norm(config, sizes.d_model, "ln2", layer, 1e-5),
        mlp=Experts(sizes.d_model, experts, at, k=k, choose=mixtures.choice(config)),
    )


FAMILY = OLMoE()
