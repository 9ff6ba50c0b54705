"""The classic configuration of a model that was loaded, read off its parts."""

import math

from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.core.sites import Site
from workbench.models.config import ACTIVATIONS, Activation
from workbench.models.layers.mlp import MLP, GatedMLP
from workbench.models.layers.norm import (
    LayerNorm,
    Norm,
    PlainLayerNorm,
    PlainRMSNorm,
    RMSNorm,
)
from workbench.models.layers.positions import rotate_neighbours
from workbench.models.transformer import ParallelBlock, PreNormBlock, Transformer
from workbench.models.views.stacks import blocks_of, words_of

# Whole key sets are named here: the sites which the classic makes only where a flag says so.
FLAGGED = {
    "attn.hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}


def config_of(model: Transformer) -> HookedTransformerConfig:
    """What the classic interface says of a model."""
    stack, sizes = model.stack, model.sizes
    words = words_of(stack)
    block = blocks_of(stack)[0]
    mlp = block.mlp
    learned = stack.embed.positions is not None
    rotary = stack.rotary is not None
    return HookedTransformerConfig(
        n_layers=sizes.n_layers,
        d_model=sizes.d_model,
        n_ctx=sizes.n_ctx,
        d_head=sizes.d_head,
        model_name=model.name,
        n_heads=sizes.n_heads,
        d_mlp=None if mlp is None else sizes.d_mlp,
        act_fn=_activation(block),
        d_vocab=sizes.d_vocab,
        d_vocab_out=words.weight.shape[0],
        eps=_eps(block.ln1),
        attn_scale=1.0 / _scale(block),
        use_attn_scale=not math.isclose(_scale(block), 1.0),
        scale_attn_by_inverse_layer_idx=_falls(blocks_of(stack)),
        normalization_type=_norm_type(block.ln1),
        final_rms=isinstance(stack.ln_final, RMSNorm | PlainRMSNorm)
        and isinstance(block.ln1, LayerNorm | PlainLayerNorm),
        positional_embedding_type="rotary" if rotary else "standard" if learned else "alibi",
        parallel_attn_mlp=isinstance(block, ParallelBlock),
        rotary_adjacent_pairs=block.attn.turn is rotate_neighbours,
        attn_scores_soft_cap=-1.0 if block.attn.cap is None else block.attn.cap,
        output_logits_soft_cap=-1.0 if words.cap is None else words.cap,
        attention_dir="causal" if stack.causal else "bidirectional",
        attn_only=mlp is None,
        gated_mlp=isinstance(mlp, GatedMLP),
        n_key_value_heads=None
        if sizes.n_key_value_heads == sizes.n_heads
        else sizes.n_key_value_heads,
        tie_word_embeddings=stack.tied,
        dtype=model.dtype,
        device=str(model.device),
    )


def enabled(cfg: HookedTransformerConfig, site: Site) -> bool:
    """Whether the classic would make this site: on-demand ones only by their flags."""
    if site.name == "hook_unembed":
        return False  # the classic has none
    name = FLAGGED.get(site.short)
    return name is None or bool(vars(cfg)[name])


def _activation(block: PreNormBlock) -> str | None:
    if not isinstance(block.mlp, MLP | GatedMLP):
        return None
    return activation_name(block.mlp.act)


def activation_name(act: Activation) -> str:
    """The first name an activation function has."""
    return next((name for name, known in ACTIVATIONS.items() if known is act), "relu")


def _norm_type(norm: Norm) -> str | None:
    match norm:
        case LayerNorm():
            return "LN"
        case PlainLayerNorm():
            return "LNPre"
        case RMSNorm():
            return "RMS"
        case PlainRMSNorm():
            return "RMSPre"
        case _:
            return None


def _eps(norm: Norm) -> float:
    match norm:
        case LayerNorm() | PlainLayerNorm() | RMSNorm() | PlainRMSNorm():
            return norm.eps
        case _:
            return 1e-5


def _scale(block: PreNormBlock) -> float:
    return block.attn.scale


def _falls(blocks: tuple[PreNormBlock, ...]) -> bool:
    """Whether scores are divided by 1, 2, 3 … from block to block."""
    first = blocks[0].attn.scale
    falls = all(
        math.isclose(block.attn.scale * (layer + 1), first) for layer, block in enumerate(blocks)
    )
    return falls and len(blocks) > 1
