"""A model from a classic configuration, of the bricks here; what they cannot do is named."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.compat.transformer_lens.initialising import clear
from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes, Vocabulary
from workbench.models.config import ACTIVATIONS, Activation
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import At, in_block, outside_blocks
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.experts import Experts, GatedExpert, of_all_normalised
from workbench.models.layers.mlp import MLP, FeedForward, GatedMLP
from workbench.models.layers.norm import (
    LayerNorm,
    NoNorm,
    Norm,
    PlainLayerNorm,
    PlainRMSNorm,
    RMSNorm,
)
from workbench.models.layers.positions import Rotary, rotary, rotate, rotate_neighbours
from workbench.models.layers.sandwich import SandwichBlock
from workbench.models.layers.score_bias import Alibi
from workbench.models.tokenizer import Tokenizer
from workbench.models.transformer import Block, ParallelBlock, PreNormBlock, Stack, Transformer


def solu(x: Tensor) -> Tensor:
    """X softmax(x), over the neurons."""
    return x * x.softmax(-1)


ACTS: Mapping[str, Activation] = MappingProxyType(
    {**ACTIVATIONS, "solu": solu, "solu_ln": solu}  # the latter with a norm after it
)

# Options whose other values change the model in a way that no brick here does.
UNBUILT: Mapping[str, Callable[[HookedTransformerConfig], tuple[str, bool]]] = MappingProxyType(
    {
        "use_hook_tokens": lambda c: ("False", not c.use_hook_tokens),
        "num_experts": lambda c: (
            "None with attn_only, and else from experts_per_token up",
            c.num_experts is None
            or (not c.attn_only and c.num_experts >= (c.experts_per_token or 0) > 0),
        ),
        "use_normalization_before_and_after": lambda c: (
            "False with attn_only or parallel_attn_mlp",
            not (c.use_normalization_before_and_after and (c.attn_only or c.parallel_attn_mlp)),
        ),
        "use_local_attn": lambda c: (
            "with window_size, and attn_types of each layer, 'global' or 'local'",
            not c.use_local_attn or _has_windows(c),
        ),
        "rotary_dim": lambda c: (
            f"even, and {c.d_head} at most",
            c.rotary_dim is None or (c.rotary_dim <= c.d_head and c.rotary_dim % 2 == 0),
        ),
        "rotary_base_local": lambda c: ("None", c.rotary_base_local is None),
        "use_NTK_by_parts_rope": lambda c: (
            "False with rotary_adjacent_pairs",
            not (c.use_NTK_by_parts_rope and c.rotary_adjacent_pairs),
        ),
        "positional_embedding_type": lambda c: (
            "'standard', 'rotary' or 'alibi', the last with attention_dir 'causal'",
            c.positional_embedding_type in ("standard", "rotary")
            or (c.positional_embedding_type == "alibi" and c.attention_dir == "causal"),
        ),
        "act_fn": lambda c: (
            f"one of {', '.join(map(repr, ACTS))}, the last without gated_mlp",
            c.attn_only or (c.act_fn in ACTS and not (c.act_fn == "solu_ln" and c.gated_mlp)),
        ),
        "n_devices": lambda c: ("1", c.n_devices == 1),
        "load_in_4bit": lambda c: ("False", not c.load_in_4bit),
        "ungroup_grouped_query_attention": lambda c: (
            "False with grouped heads",
            not c.ungroup_grouped_query_attention or c.groups == c.n_heads,
        ),
    }
)


def build(cfg: HookedTransformerConfig, vocabulary: Vocabulary | None) -> Transformer:
    """A model with weights not yet drawn (zeros; norms 1); fills in `cfg.d_vocab` if it is -1.

    Raises:
        OptionError: If no brick here does what an option asks; names the option.
    """
    _check(cfg)
    if cfg.d_vocab == -1:
        cfg.d_vocab = _known_words(vocabulary)
    cfg.d_vocab_out = cfg.d_vocab if cfg.d_vocab_out == -1 else cfg.d_vocab_out
    sizes = Sizes(
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        n_key_value_heads=cfg.groups,
        d_head=cfg.d_head,
        d_mlp=cfg.d_mlp or 0,
        d_vocab=cfg.d_vocab,
        n_ctx=cfg.n_ctx,
    )
    with torch.device("meta"):  # else every matrix would be drawn from the process's generator
        stack = _stack(cfg, sizes)
    stack = stack.to_empty(device="cpu").to(cfg.dtype)
    clear(stack)
    fingerprint = f"built from a configuration, seed {cfg.seed}"
    return Transformer(stack, name=cfg.model_name, fingerprint=fingerprint, tokenizer=vocabulary)


def _stack(cfg: HookedTransformerConfig, sizes: Sizes) -> Stack:
    kind = cfg.positional_embedding_type
    return Stack(
        sizes=sizes,
        embed=_embedding(cfg),
        blocks=[_block(cfg, layer) for layer in range(cfg.n_layers)],
        ln_final=_norm(cfg, outside_blocks, "ln_final", rms=cfg.final_rms),
        unembed=Unembedding(
            cfg.d_model, cfg.d_vocab_out, bias=True, cap=_cap(cfg.output_logits_soft_cap)
        ),
        rotary=_rotary(cfg) if kind == "rotary" else None,
        causal=cfg.attention_dir == "causal",
        score_bias=Alibi(_slopes(cfg.n_heads)) if kind == "alibi" else None,
    )


def _embedding(cfg: HookedTransformerConfig) -> Embedding:
    kind = cfg.positional_embedding_type
    return Embedding(
        cfg.d_vocab,
        cfg.d_model,
        None if kind == "rotary" else cfg.n_ctx,
        norm=LayerNorm(cfg.d_model, cfg.eps, outside_blocks, "embed.ln")
        if cfg.post_embedding_ln
        else None,
        idle=kind == "alibi",
    )


def _slopes(n_heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), …: of a count that is no power of two, too, unlike BLOOM's."""
    return [2.0 ** (-8 * head / n_heads) for head in range(1, n_heads + 1)]


def _has_windows(cfg: HookedTransformerConfig) -> bool:
    types = cfg.attn_types or []
    known = len(types) == cfg.n_layers and set(types) <= {"global", "local"}
    return known and cfg.window_size is not None and cfg.window_size > 0


def _window(cfg: HookedTransformerConfig, layer: int) -> int | None:
    if not cfg.use_local_attn or cfg.attn_types is None:
        return None
    return cfg.window_size if cfg.attn_types[layer] == "local" else None


def _rotary(cfg: HookedTransformerConfig) -> Rotary:
    width = cfg.rotary_dim or cfg.d_head
    if cfg.use_NTK_by_parts_rope:
        parameters: dict[str, object] = {
            "rope_type": "llama3",
            "rope_theta": cfg.rotary_base,
            "factor": cfg.NTK_by_parts_factor,
            "low_freq_factor": cfg.NTK_by_parts_low_freq_factor,
            "high_freq_factor": cfg.NTK_by_parts_high_freq_factor,
            "original_max_position_embeddings": cfg.NTK_original_ctx_len,
        }
        return rotary(width, parameters)
    steps = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    return Rotary(1.0 / cfg.rotary_base**steps, neighbours=cfg.rotary_adjacent_pairs)


def _cap(cap: float) -> float | None:
    return cap if cap > 0 else None


def _check(cfg: HookedTransformerConfig) -> None:
    for name, rule in UNBUILT.items():
        allowed, fine = rule(cfg)
        if not fine:
            value: Any = vars(cfg)[name]
            raise OptionError(f"cfg.{name}", f"{allowed} (no brick here does another)", value)


def _known_words(vocabulary: Vocabulary | None) -> int:
    if not isinstance(vocabulary, Tokenizer):
        raise OptionError("cfg.d_vocab", "given, or read off a tokenizer", -1)
    return vocabulary.n_vocab


def _attention(cfg: HookedTransformerConfig, layer: int, at: At) -> Attention:
    scale = 1.0 / cfg.attn_scale if cfg.use_attn_scale else 1.0
    scale = scale / (layer + 1) if cfg.scale_attn_by_inverse_layer_idx else scale
    by_head = [
        RMSNorm(cfg.d_head, cfg.eps, at, f"attn.{name}") if cfg.use_qk_norm else None
        for name in ("q_norm", "k_norm")
    ]
    return Attention(
        layer,
        cfg.d_model,
        cfg.n_heads,
        cfg.groups,
        cfg.d_head,
        at,
        scale=scale,
        rotary=cfg.positional_embedding_type == "rotary",
        bias=True,
        out_bias=True,
        turn=rotate_neighbours if cfg.rotary_adjacent_pairs else rotate,
        cap=_cap(cfg.attn_scores_soft_cap),
        window=_window(cfg, layer),
        q_norm=by_head[0],
        k_norm=by_head[1],
    )


def _block(cfg: HookedTransformerConfig, layer: int) -> PreNormBlock:
    at = in_block(layer)
    attention = _attention(cfg, layer, at)
    ln1, mlp = _norm(cfg, at, "ln1"), _mlp(cfg, at)
    ln2 = NoNorm() if cfg.attn_only else _norm(cfg, at, "ln2")
    if cfg.parallel_attn_mlp and mlp is not None:
        return ParallelBlock(at, ln1=ln1, attn=attention, ln2=ln2, mlp=mlp)
    if cfg.use_normalization_before_and_after and mlp is not None:
        return SandwichBlock(
            at,
            ln1=ln1,
            attn=attention,
            ln1_post=_norm(cfg, at, "ln1_post", weighted=True),
            ln2=ln2,
            mlp=mlp,
            ln2_post=_norm(cfg, at, "ln2_post", weighted=True),
        )
    return Block(at, ln1=ln1, attn=attention, ln2=ln2, mlp=mlp)


def _mlp(cfg: HookedTransformerConfig, at: At) -> FeedForward | None:
    if cfg.attn_only or cfg.act_fn is None:
        return None
    width, act = cfg.d_mlp or 0, ACTS[cfg.act_fn]
    if cfg.num_experts is not None:
        experts = [GatedExpert(cfg.d_model, width, act) for _ in range(cfg.num_experts)]
        k = cfg.experts_per_token or 0
        return Experts(cfg.d_model, experts, at, k=k, choose=of_all_normalised)
    if not cfg.gated_mlp:
        norm = _neuron_norm(cfg, width, at) if cfg.is_layer_norm_activation() else None
        return MLP(cfg.d_model, width, act, at, bias=True, norm=norm)
    mlp = GatedMLP(cfg.d_model, width, act, at, bias=False, inner_bias=True)
    mlp.down.bias = torch.nn.Parameter(torch.empty(cfg.d_model))
    return mlp


def _neuron_norm(cfg: HookedTransformerConfig, width: int, at: At) -> Norm:
    if cfg.normalization_type == "LN":
        return LayerNorm(width, cfg.eps, at, "mlp.ln")
    return PlainLayerNorm(cfg.eps, at, "mlp.ln")


def _norm(
    cfg: HookedTransformerConfig, at: At, name: str, *, rms: bool = False, weighted: bool = False
) -> Norm:
    """A norm of the configured kind; `weighted` where its weights can never be folded."""
    kind = cfg.normalization_type
    if rms and kind is not None:
        kind = kind.replace("LN", "RMS")
    if weighted and kind is not None:
        kind = kind.removesuffix("Pre")
    match kind:
        case "LN":
            return LayerNorm(cfg.d_model, cfg.eps, at, name)
        case "LNPre":
            return PlainLayerNorm(cfg.eps, at, name)
        case "RMS":
            return RMSNorm(cfg.d_model, cfg.eps, at, name)
        case "RMSPre":
            return PlainRMSNorm(cfg.eps, at, name)
        case _:
            return NoNorm()
