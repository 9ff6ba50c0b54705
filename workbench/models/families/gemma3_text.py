"""Gemma 3's text model: Gemma 2's blocks, q/k norms; windowed layers turn by another base."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, final

from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models import gemmas, modern
from workbench.models.config import Config
from workbench.models.family import Family
from workbench.models.layers.attention import Attention
from workbench.models.transformer import Stack

READ = (gemmas.READ - {"attn_logit_softcapping"}) | {
    "rope_local_base_freq",
    "sliding_window_pattern",
    "_sliding_window_pattern",
}
DEFAULTS: Mapping[str, object] = {
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": None,  # transformers reads it and caps nothing: whom to believe?
}
NAMES = modern.names(*modern.QKVO, *modern.GATED, *gemmas.SANDWICH, *modern.QK_NORMS)


@final
@dataclass(frozen=True)
class Gemma3Text(Family):
    """The text model of the Gemma 3 architecture."""

    @override
    def build(self, config: Config) -> Stack:
        config.finish(READ, DEFAULTS)
        rope, local = _ropes(config)
        sizes = modern.sizes_of(config, rope, d_head=256)
        every = config.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
        windows = modern.windows(config, [(i + 1) % every != 0 for i in range(sizes.n_layers)])
        attentions = [_attention(i, sizes, config, window) for i, window in enumerate(windows)]
        return Stack(
            sizes=sizes,
            embed=gemmas.embedding(sizes),
            blocks=[gemmas.block(i, sizes, config, attn) for i, attn in enumerate(attentions)],
            ln_final=gemmas.norm(config, sizes.d_model, "ln_final", None),
            unembed=gemmas.unembedding(sizes, config, None),
            rotary=modern.turning(config, sizes, rope),
            local_rotary=modern.turning(config, sizes, local),
            tied=config.flag("tie_word_embeddings", default=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        return modern.converted(weights, NAMES, stack)


def _attention(layer: int, sizes: Sizes, config: Config, window: int | None) -> Attention:
    bias = config.flag("attention_bias", default=False)
    return modern.heads(layer, sizes, scale=gemmas.scale(config))(
        rotary=True,
        bias=bias,
        out_bias=bias,
        q_norm=gemmas.norm(config, sizes.d_head, "attn.q_norm", layer),
        k_norm=gemmas.norm(config, sizes.d_head, "attn.k_norm", layer),
        window=window,
        local=window is not None,
    )


def _ropes(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rotary parameters of whole and of windowed layers: newer configs have a table for each.

    Raises:
        OptionError: If there is something else.
    """
    local: dict[str, Any] = {"rope_theta": config.number("rope_local_base_freq", 10000.0)}
    found: object = config.values.get("rope_parameters") or {}
    both = cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}
    if not both:
        return modern.rope_of(config, 1000000.0), local
    own = both.get(modern.FULL), both.get(modern.SLIDING)
    if set(both) != {modern.FULL, modern.SLIDING} or not all(isinstance(o, Mapping) for o in own):
        allowed = f"two tables, {modern.FULL!r} and {modern.SLIDING!r}"
        raise OptionError("gemma3_text: config key 'rope_parameters'", allowed, found)
    return {"rope_theta": 1000000.0, **(own[0] or {})}, {**local, **(own[1] or {})}


FAMILY = Gemma3Text()
