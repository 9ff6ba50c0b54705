"""BART: post-norm stacks with learned positions, an encoder read by a decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.core.sites import Site
from workbench.models.config import Config
from workbench.models.encoder_decoder import TwoStacks
from workbench.models.family import Family, renamed, without_copies
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import At, in_stack, outside_blocks
from workbench.models.layers.cross_attention import CrossAttention
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.entrance import Entrance
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm, NoNorm
from workbench.models.layers.post_cross_block import PostCrossBlock
from workbench.models.layers.post_norm import PostNormBlock
from workbench.models.transformer import Stack

READ = frozenset(
    "vocab_size d_model max_position_embeddings encoder_layers decoder_layers "
    "encoder_attention_heads decoder_attention_heads encoder_ffn_dim decoder_ffn_dim "
    "activation_function scale_embedding decoder_start_token_id is_encoder_decoder "
    "tie_word_embeddings "  # its weights say whether they are
    # of no effect at inference, or of how texts are searched for
    "dropout attention_dropout activation_dropout classifier_dropout classif_dropout init_std "
    "encoder_layerdrop decoder_layerdrop num_hidden_layers forced_bos_token_id "
    "forced_eos_token_id force_bos_token_to_be_generated max_length min_length num_beams "
    "early_stopping length_penalty no_repeat_ngram_size output_past prefix num_labels".split()
)
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "normalize_before": False,
        "normalize_embedding": True,
        "add_final_layer_norm": False,
        "add_bias_logits": False,
        "static_position_embeddings": False,
        "extra_pos_embeddings": 2,
        "do_blenderbot_90_layernorm": False,
    }
)
OFFSET = 2  # rows of the positions that no token has
EPS = 1e-5
AGAIN = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
_HEADS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}


def _names() -> Mapping[str, str]:
    found = {
        "model.shared.weight": "embed.tokens",
        "lm_head.weight": "unembed.weight",
        "final_logits_bias": "unembed.bias",
    }
    own, feed = ("self_attn", "attn"), (("fc1", "mlp.up"), ("fc2", "mlp.down"))
    for theirs, ours, start, across in (
        ("encoder", "blocks", "source", ()),
        ("decoder", "decoder", "target", (("encoder_attn", "cross.inner"),)),
    ):
        found[f"model.{theirs}.embed_positions.weight"] = f"{start}.positions"
        attentions = (own, *across)
        norms = [f"{part}_layer_norm" for part, _ in attentions] + ["final_layer_norm"]
        pairs = [
            (f"{part}.{old}", f"{brick}.{new}")
            for part, brick in attentions
            for old, new in _HEADS.items()
        ]
        pairs += [*feed, *((norm, f"ln{place + 1}") for place, norm in enumerate(norms))]
        for kind in ("weight", "bias"):
            found[f"model.{theirs}.layernorm_embedding.{kind}"] = f"{start}.norm.{kind}"
            for old, new in pairs:
                found[f"model.{theirs}.layers.{{}}.{old}.{kind}"] = f"{ours}.{{}}.{new}.{kind}"
    return found


NAMES: Mapping[str, str] = MappingProxyType(_names())


@final
@dataclass(frozen=True)
class BART(Family):
    """The BART architecture."""

    @override
    def build(self, config: Config) -> TwoStacks:
        config.finish(READ, DEFAULTS)
        sizes = _sizes(config)
        n_encoder = sizes.n_encoder_layers
        return TwoStacks(
            sizes=sizes,
            embed=Embedding(sizes.d_vocab, sizes.d_model),
            entrances=(
                _entrance(sizes, config, outside_blocks),
                _entrance(sizes, config, lambda name: Site(f"decoder.{name}")),
            ),
            blocks=[_block(layer, sizes, config) for layer in range(n_encoder)],
            encoder_final=NoNorm(),
            decoder=[_cross(layer, sizes, config) for layer in range(sizes.n_layers - n_encoder)],
            ln_final=NoNorm(),
            unembed=Unembedding(sizes.d_model, sizes.d_vocab, bias=True),
        )

    @override
    def convert(self, weights: Mapping[str, Tensor], stack: Stack) -> Mapping[str, Tensor]:
        one = without_copies(weights, "model.shared.weight", AGAIN)
        found = renamed(one, NAMES, stack.sizes.n_layers, ())
        tokens = found.get("embed.tokens")
        if tokens is not None:
            found.setdefault("unembed.weight", tokens)
            found.setdefault("unembed.bias", torch.zeros_like(tokens[:, 0]))
            found["unembed.bias"] = found["unembed.bias"].flatten()
        return found


def _sizes(config: Config) -> Sizes:
    n_encoder, d_model = config.layers("encoder_layers"), config.count("d_model")
    n_heads, d_mlp = config.count("encoder_attention_heads"), config.count("encoder_ffn_dim")
    for name, ours in (("decoder_attention_heads", n_heads), ("decoder_ffn_dim", d_mlp)):
        if config.count(name) != ours:
            raise OptionError(f"bart: {name}", f"as in the encoder, {ours}", config.count(name))
    if d_model % n_heads:
        raise OptionError("bart: d_model", f"a multiple of {n_heads} heads", d_model)
    return Sizes(
        n_layers=n_encoder + config.layers("decoder_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=d_mlp,
        d_vocab=config.count("vocab_size"),
        n_ctx=config.count("max_position_embeddings", default=1024),
        n_encoder_layers=n_encoder,
        start_id=int(config.values.get("decoder_start_token_id", 2)),
    )


def _entrance(sizes: Sizes, config: Config, at: At) -> Entrance:
    scaled = config.flag("scale_embedding", default=False)
    return Entrance(
        at,
        sizes.d_model,
        n_positions=sizes.n_ctx,
        offset=OFFSET,
        scale=sizes.d_model**0.5 if scaled else None,
        norm=LayerNorm(sizes.d_model, EPS, at, "embed.ln"),
    )


def _block(layer: int, sizes: Sizes, config: Config) -> PostNormBlock:
    at = in_stack("encoder", layer)
    ln1, ln2 = (LayerNorm(sizes.d_model, EPS, at, name) for name in ("ln1", "ln2"))
    attn, mlp = _attention(layer, sizes, at), _feed(sizes, config, at)
    return PostNormBlock(at, attn=attn, ln1=ln1, mlp=mlp, ln2=ln2)


def _cross(layer: int, sizes: Sizes, config: Config) -> PostCrossBlock:
    at, scale = in_stack("decoder", layer), sizes.d_head**-0.5
    ln1, ln2, ln3 = (LayerNorm(sizes.d_model, EPS, at, name) for name in ("ln1", "ln2", "ln3"))
    attn, mlp = _attention(layer, sizes, at), _feed(sizes, config, at)
    cross = CrossAttention(
        layer, sizes.d_model, sizes.n_heads, sizes.d_head, at, scale=scale, bias=True
    )
    return PostCrossBlock(at, attn=attn, ln1=ln1, cross=cross, ln2=ln2, mlp=mlp, ln3=ln3)


def _attention(layer: int, sizes: Sizes, at: At) -> Attention:
    return Attention(
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_heads,
        sizes.d_head,
        at,
        scale=sizes.d_head**-0.5,
        rotary=False,
        bias=True,
        out_bias=True,
    )


def _feed(sizes: Sizes, config: Config, at: At) -> MLP:
    act = config.activation("activation_function", "gelu")
    return MLP(sizes.d_model, sizes.d_mlp, act, at, bias=True)


FAMILY = BART()
