"""Fresh weights as the classic draws them, in each of its modes.

Notable: they come from a generator of their own, in the classic's order and shapes, so the same
seed gives the same weights bit for bit, and no other random number changes.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.compat.transformer_lens.native import native, native_names
from workbench.models.layers.norm import LayerNorm, RMSNorm
from workbench.models.transformer import Stack

Draw: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
Mode: TypeAlias = Callable[[HookedTransformerConfig, str, Tensor], Draw]


def _normal(scale: float) -> Draw:
    return lambda value, draws: value.normal_(0.0, scale, generator=draws)


def _uniform(bound: float) -> Draw:
    return lambda value, draws: value.uniform_(-bound, bound, generator=draws)


def _fans(value: Tensor) -> tuple[int, int]:
    """What goes in and out of a matrix, or of those of all heads together."""
    if value.ndim == 2:
        return value.shape[0], value.shape[1]
    return value.shape[1], value.shape[0] * value.shape[2]


def _hidden(name: str, value: Tensor) -> float:
    """The scale of muP: 1 for what reads tokens, 1 / sqrt(in) inside.

    For the unembedding too it is 1, as 2.18 draws it, and not the 1 / in that it says.
    """
    return 1.0 if "embed" in name else 1 / _fans(value)[0] ** 0.5


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "gpt2": lambda cfg, _, __: _normal(cfg.initializer_range),
        "xavier_uniform": lambda cfg, _, value: _uniform(
            cfg.initializer_range * math.sqrt(6.0 / sum(_fans(value)))
        ),
        "xavier_normal": lambda cfg, _, value: _normal(
            cfg.initializer_range * math.sqrt(2.0 / sum(_fans(value)))
        ),
        "kaiming_uniform": lambda cfg, _, value: _uniform(
            cfg.initializer_range * math.sqrt(2.0) * math.sqrt(3.0 / _fans(value)[0])
        ),
        "kaiming_normal": lambda cfg, _, value: _normal(
            cfg.initializer_range * math.sqrt(2.0) * math.sqrt(1.0 / _fans(value)[0])
        ),
        "muP": lambda _, name, value: _normal(_hidden(name, value)),
    }
)


def initialise(stack: Stack, cfg: HookedTransformerConfig) -> None:
    """Draws every W by `cfg.init_mode`; biases 0, norm weights 1."""
    draws = torch.Generator()
    draws = draws.manual_seed(draws.seed() if cfg.seed is None else cfg.seed)
    names, places = native_names(stack), dict(stack.named_parameters(remove_duplicate=False))
    clear(stack)
    with torch.no_grad():
        for name in _drawn(cfg):
            value = torch.empty(_classic_shape(name, cfg), dtype=cfg.dtype)
            value = MODES[cfg.init_mode](cfg, name, value)(value, draws)
            places[names[name]].copy_(native(name, value))


def clear(stack: Stack) -> None:
    """Every weight 0, those of norms 1."""
    norms = {id(norm.weight) for norm in stack.modules() if isinstance(norm, LayerNorm | RMSNorm)}
    with torch.no_grad():
        for weight in stack.parameters():
            weight.fill_(1.0 if id(weight) in norms else 0.0)


def _drawn(cfg: HookedTransformerConfig) -> list[str]:
    """The names in the order in which the classic draws them."""
    key = "_" if cfg.groups != cfg.n_heads else ""
    parts = ["attn.W_Q", "attn.W_O", f"attn.{key}W_K", f"attn.{key}W_V"]
    parts += [] if cfg.attn_only else _drawn_neurons(cfg)
    inner = [f"blocks.{layer}.{part}" for layer in range(cfg.n_layers) for part in parts]
    learned = [] if cfg.positional_embedding_type == "rotary" else ["pos_embed.W_pos"]
    return ["embed.W_E", *learned, *inner, "unembed.W_U"]


def _drawn_neurons(cfg: HookedTransformerConfig) -> list[str]:
    if cfg.num_experts is None:
        return ["mlp.W_in", "mlp.W_out", *(["mlp.W_gate"] if cfg.gated_mlp else [])]
    kinds, places = ("W_in", "W_out", "W_gate"), range(cfg.num_experts)
    each = [f"mlp.experts.{place}.{kind}.weight" for place in places for kind in kinds]
    return [*each, "mlp.W_gate.weight"]


def _classic_shape(name: str, cfg: HookedTransformerConfig) -> tuple[int, ...]:
    d, m = cfg.d_model, cfg.d_mlp or 0
    if name.endswith(".mlp.W_gate.weight"):
        return cfg.num_experts or 0, d
    if name.endswith(".weight"):  # an expert's, in the layout of torch's linear maps
        return (d, m) if "W_out" in name else (m, d)
    return {
        "W_E": (cfg.d_vocab, d),
        "W_pos": (cfg.n_ctx, d),
        "W_Q": (cfg.n_heads, d, cfg.d_head),
        "W_K": (cfg.groups, d, cfg.d_head),
        "W_V": (cfg.groups, d, cfg.d_head),
        "W_O": (cfg.n_heads, cfg.d_head, d),
        "W_in": (d, m),
        "W_gate": (d, m),
        "W_out": (m, d),
        "W_U": (d, cfg.d_vocab_out),
    }[name.rsplit(".", 1)[-1].lstrip("_")]
