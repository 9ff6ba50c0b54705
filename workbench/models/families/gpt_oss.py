"""GPT-OSS: attention sinks, every other layer windowed, experts with biases and clamped gates.

Weights must be ordinary floating point numbers; a config with a `quantization_config` is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from workbench.core.protocols import Sizes
from workbench.models import mixtures, modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.context import in_block
from workbench.models.layers.experts import ClampedExpert, Experts, of_chosen
from workbench.models.transformer import Block, Stack

READ = (
    modern.WINDOWED
    | mixtures.READ
    | frozenset(
        "head_dim attention_bias num_local_experts swiglu_alpha swiglu_limit experts_per_token "
        "initial_context_length".split()  # the last two repeat others
    )
)
PARTS = (*modern.QKVO, *modern.PRE_NORMS, ("mlp.router", "mlp.router"))
SINKS = MappingProxyType({"model.layers.{}.self_attn.sinks": "blocks.{}.attn.sinks"})
EXPERT = MappingProxyType(
    {
        "gate_up_proj": "joint",
        "gate_up_proj_bias": "joint_bias",
        "down_proj": "down",
        "down_proj_bias": "down_bias",
    }
)
ROPE: Mapping[str, Any] = MappingProxyType(  # where a config says nothing
    {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
)


@final
@dataclass(frozen=True)
class GPTOSS(Family):
    """The GPT-OSS architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config, 150000.0)
        rope = {**ROPE, **rope} if set(rope) == {"rope_theta"} else rope
        sizes = modern.sizes_of(config, rope, d_head=64)
        windows = modern.windows(config, [layer % 2 == 0 for layer in range(sizes.n_layers)])
        blocks = [_block(layer, sizes, config, window) for layer, window in enumerate(windows)]
        return modern.stack(config, sizes, blocks, rope, eps=1e-5)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        apart, layers = _apart(weights), range(stack.sizes.n_layers)
        inner = {f"model.layers.{i}.mlp.experts.": f"blocks.{i}.mlp.experts." for i in layers}
        experts = {
            f"{new}{name.removeprefix(old)}": apart.pop(name)
            for name in list(apart)
            for old, new in inner.items()
            if name.startswith(old)
        }
        return {**modern.converted(apart, {**modern.names(*PARTS), **SINKS}, stack), **experts}


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with those of each expert under a name of its own, as views."""
    found = dict[str, Tensor]()
    for name, weight in weights.items():
        layer, joint, kind = name.partition(".mlp.experts.")
        if not joint or kind not in EXPERT:
            found[name] = weight
            continue
        each = enumerate(weight)
        found |= {f"{layer}.mlp.experts.{index}.{EXPERT[kind]}": part for index, part in each}
    return found


def _block(layer: int, sizes: Sizes, config: Config, window: int | None) -> Block:
    at, bias = in_block(layer), config.flag("attention_bias", default=True)
    attend = modern.heads(layer, sizes)
    return Block(
        at,
        ln1=modern.norm(config, sizes.d_model, "ln1", layer, 1e-5),
        attn=attend(rotary=True, bias=bias, out_bias=bias, window=window, sinks=True),
        ln2=modern.norm(config, sizes.d_model, "ln2", layer, 1e-5),
        mlp=_experts(layer, sizes, config),
    )


def _experts(layer: int, sizes: Sizes, config: Config) -> Experts:
    alpha, limit = config.number("swiglu_alpha", 1.702), config.number("swiglu_limit", 7.0)
    count = config.count("num_local_experts", default=128)
    experts = [ClampedExpert(sizes.d_model, sizes.d_mlp, alpha, limit) for _ in range(count)]
    k = config.count("num_experts_per_tok", default=4)
    at = in_block(layer)
    return Experts(sizes.d_model, experts, at, k=k, choose=of_chosen, bias=True)


FAMILY = GPTOSS()
