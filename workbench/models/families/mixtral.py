"""Mixtral: Mistral's blocks with experts, of which a few are chosen for each token."""

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
from workbench.models.layers.experts import Experts, GatedExpert, of_all_normalised
from workbench.models.transformer import Block, Stack

READ = modern.READ | mixtures.READ | {"head_dim", "sliding_window", "num_local_experts"}
PARTS = (*modern.QKVO, *modern.PRE_NORMS, ("mlp.gate", "mlp.router"))
ON_DISK = (
    (".block_sparse_moe.", ".mlp."),
    (".w1.", ".gate_proj."),
    (".w2.", ".down_proj."),
    (".w3.", ".up_proj."),
)


@final
@dataclass(frozen=True)
class Mixtral(Family):
    """The Mixtral architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config, 1000000.0)
        sizes = modern.sizes_of(config, rope)
        blocks = [_block(layer, sizes, config) for layer in range(sizes.n_layers)]
        return modern.stack(config, sizes, blocks, rope, eps=1e-5)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        named = {_renewed(name): weight for name, weight in weights.items()}
        table = modern.names(*PARTS, *mixtures.expert_parts(stack))
        return modern.converted(mixtures.apart(named), table, stack)


def _renewed(name: str) -> str:
    if ".block_sparse_moe." in name:
        for old, new in ON_DISK:
            name = name.replace(old, new)
    return name


def _block(layer: int, sizes: Sizes, config: Config) -> Block:
    attend, at = modern.heads(layer, sizes), in_block(layer)
    act = config.activation("hidden_act", "silu")
    count = config.count("num_local_experts", default=8)
    experts = [GatedExpert(sizes.d_model, sizes.d_mlp, act) for _ in range(count)]
    k = config.count("num_experts_per_tok", default=2)
    return Block(
        at,
        ln1=modern.norm(config, sizes.d_model, "ln1", layer, 1e-5),
        attn=attend(rotary=True, bias=False, out_bias=False, window=modern.width(config)),
        ln2=modern.norm(config, sizes.d_model, "ln2", layer, 1e-5),
        mlp=Experts(sizes.d_model, experts, at, k=k, choose=of_all_normalised),
    )


FAMILY = Mixtral()
