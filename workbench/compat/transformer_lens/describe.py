"""The classic configuration of a model that was loaded, read off its parts."""

import math

from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.core.errors import OptionError
from workbench.core.sites import Site
from workbench.models.config import ACTIVATIONS, Activation
from workbench.models.layers.experts import (
    Experts,
    GatedExpert,
    of_all_normalised,
    of_chosen,
)
from workbench.models.layers.mlp import MLP, FeedForward, GatedMLP
from workbench.models.layers.norm import (
    LayerNorm,
    NoNorm,
    Norm,
    PlainLayerNorm,
    PlainRMSNorm,
    RMSNorm,
    Times,
)
from workbench.models.layers.positions import rotate_neighbours
from workbench.models.layers.sandwich import SandwichBlock
from workbench.models.layers.score_bias import Alibi
from workbench.models.transformer import ParallelBlock, PreNormBlock, Stack, Transformer
from workbench.models.views.stacks import bias_of, blocks_of, embed_of, words_of

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
    """What the classic interface says of a model.

    Raises:
        OptionError: If it has no words for what the model does.
    """
    stack, sizes = model.stack, model.sizes
    _check(stack)
    windows = [block.attn.window for block in blocks_of(stack)]
    words = words_of(stack)
    block = blocks_of(stack)[0]
    mlp = block.mlp
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
        positional_embedding_type=_positions(stack),
        post_embedding_ln=embed_of(stack).ln is not None,
        use_normalization_before_and_after=isinstance(block, SandwichBlock),
        parallel_attn_mlp=isinstance(block, ParallelBlock),
        rotary_adjacent_pairs=block.attn.turn is rotate_neighbours,
        attn_scores_soft_cap=-1.0 if block.attn.cap is None else block.attn.cap,
        use_qk_norm=isinstance(block.attn.q_norm, RMSNorm),
        use_local_attn=any(windows),
        window_size=max((width for width in windows if width is not None), default=None),
        attn_types=["local" if width else "global" for width in windows] if any(windows) else None,
        output_logits_soft_cap=-1.0 if words.cap is None else words.cap,
        attention_dir="causal" if stack.causal else "bidirectional",
        attn_only=mlp is None,
        gated_mlp=isinstance(mlp, GatedMLP),
        num_experts=len(mlp.experts) if isinstance(mlp, Experts) else None,
        experts_per_token=mlp.k if isinstance(mlp, Experts) else None,
        n_key_value_heads=None
        if sizes.n_key_value_heads == sizes.n_heads
        else sizes.n_key_value_heads,
        tie_word_embeddings=stack.tied,
        dtype=model.dtype,
        device=str(model.device),
    )


def _check(stack: Stack) -> None:
    """Refuses what the classic configuration cannot say, lest its weights mean something else.

    Raises:
        OptionError: If the model does something of the kind; names it.
    """
    attentions = [block.attn for block in blocks_of(stack)]
    norms = [norm for attn in attentions for norm in (attn.q_norm, attn.k_norm)]
    lacks = {
        "embeddings times a number": embed_of(stack).scale is not None,
        "logits times a number": words_of(stack).scale is not None,
        "frequencies stretched by a text's length": stack.rotary is not None
        and stack.rotary.stretch is not None,
        "layers that turn and layers that do not": len({attn.rotary for attn in attentions}) > 1,
        "windows of several widths": len({a.window for a in attentions} - {None}) > 1,
        "attention sinks": any(attn.sinks is not None for attn in attentions),
        "a bias of scores that is no ALiBi": not isinstance(stack.score_bias, Alibi | None),
        "writings times a number": any(isinstance(part, Times) for part in stack.modules()),
        "experts other than Mixtral's": not all(_plain_experts(b.mlp) for b in blocks_of(stack)),
        "clipped queries": any(attn.clip is not None for attn in attentions),
        "norms over all heads": not all(isinstance(norm, RMSNorm | NoNorm) for norm in norms),
    }
    found = [name for name, there in lacks.items() if there]
    if found:
        allowed = "one the classic interface can describe; use workbench.run on the model itself"
        raise OptionError("model", allowed, f"one with {', '.join(found)}")


def enabled(cfg: HookedTransformerConfig, site: Site) -> bool:
    """Whether the classic would make this site: on-demand ones only by their flags."""
    if site.name == "hook_unembed":
        return False  # the classic has none
    name = FLAGGED.get(site.short)
    return name is None or bool(vars(cfg)[name])


def _plain_experts(mlp: FeedForward | None) -> bool:
    """Whether there are none, or gated ones whose weights sum to 1 and nothing beside them."""
    if not isinstance(mlp, Experts):
        return True
    gated = all(isinstance(expert, GatedExpert) for expert in mlp.experts)
    chosen = mlp.choose in (of_all_normalised, of_chosen)  # which are one and the same
    return gated and chosen and mlp.shared is None and bias_of(mlp.router) is None


def _positions(stack: Stack) -> str:
    if stack.rotary is not None:
        return "rotary"
    learned = stack.embed.positions is not None and not embed_of(stack).idle
    return "standard" if learned else "alibi"


def _activation(block: PreNormBlock) -> str | None:
    match block.mlp:
        case MLP() | GatedMLP() as mlp:
            return activation_name(mlp.act)
        case Experts() as mlp if isinstance(expert := mlp.experts[0], GatedExpert):
            return activation_name(expert.act)
        case _:
            return None


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
