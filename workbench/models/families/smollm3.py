"""SmolLM3: Llama's blocks, of which some turn no queries and keys; those may be windowed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, final

from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models import modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.context import in_block
from workbench.models.transformer import Block, Stack

READ = modern.WINDOWED | frozenset(
    "head_dim attention_bias mlp_bias use_sliding_window no_rope_layers no_rope_layer_interval "
    "max_window_layers pretraining_tp".split()  # the last two are read by nobody
)
NAMES = modern.names(*modern.QKVO, *modern.GATED, *modern.PRE_NORMS)


@final
@dataclass(frozen=True)
class SmolLM3(Family):
    """The SmolLM3 architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ)
        rope = modern.rope_of(config, 2000000.0)
        sizes = modern.sizes_of(config, rope)
        turned = _turned(config, sizes.n_layers)
        windowed = config.flag("use_sliding_window", default=False) and modern.width(config)
        windows = modern.windows(config, [bool(windowed) and not turns for turns in turned])
        windows = windows if windowed else (None,) * sizes.n_layers
        blocks = [
            _block(layer, sizes, config, window, rotary=turned[layer])
            for layer, window in enumerate(windows)
        ]
        return modern.stack(config, sizes, blocks, rope, tied=True)

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


def _turned(config: Config, n_layers: int) -> tuple[bool, ...]:
    """Which layers turn queries and keys; the config's `no_rope_layers` are 1 where one does.

    Raises:
        OptionError: If that is no list of as many.
    """
    found = config.values.get("no_rope_layers")
    if found is None:
        every = config.count("no_rope_layer_interval", default=4)
        return tuple((layer + 1) % every != 0 for layer in range(n_layers))
    listed = list(cast("list[Any]", found)) if isinstance(found, list | tuple) else []
    if len(listed) != n_layers or not all(one in (0, 1) for one in listed):
        allowed = f"a list of {n_layers} zeros and ones"
        raise OptionError("smollm3: config key 'no_rope_layers'", allowed, found)
    return tuple(map(bool, listed))


def _block(layer: int, sizes: Sizes, config: Config, window: int | None, *, rotary: bool) -> Block:
    bias = config.flag("attention_bias", default=False)
    mlp_bias = config.flag("mlp_bias", default=False)
    return Block(
        in_block(layer),
        ln1=modern.norm(config, sizes.d_model, "ln1", layer),
        attn=modern.heads(layer, sizes)(rotary=rotary, bias=bias, out_bias=bias, window=window),
        ln2=modern.norm(config, sizes.d_model, "ln2", layer),
        mlp=modern.gated(layer, sizes, config, bias=mlp_bias),
    )


FAMILY = SmolLM3()
