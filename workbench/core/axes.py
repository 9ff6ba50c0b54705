"""Shared tensor types and the axes of every site; notable: the table *is* the field's vocabulary.

A site's axes are looked up here by its name with the layer blanked out. `pos` and `query` are
positions of the pass at hand, `key` runs over all positions a query may see (cached ones too).
"""

from collections.abc import Mapping
from types import MappingProxyType

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
Positions = Int[Tensor, "batch pos"]
Real = Bool[Tensor, "batch pos"]
Resid = Float[Tensor, "batch pos d_model"]
Memory = Float[Tensor, "batch source d_model"]  # what a decoder reads of its encoder
Segment = tuple[Float[Tensor, "batch memory d_model"], ...]  # before each block; () for none
QueryStream = Float[Tensor, "batch target d_model"]  # beside a content stream
OfStack = Float[Tensor, "batch _ d_model"]  # a stream, of whichever of two stacks
Logits = Float[Tensor, "batch pos d_vocab"]
PerExample = Float[Tensor, " batch"]

_STREAM = "batch pos d_model"
_SCALE = "batch pos 1"
_HEADS = "batch pos head d_head"
_HEAD_SCALE = "batch pos head 1"
_PER_HEAD = "batch pos head d_model"
_SQUARE = "batch head query key"
_NEURONS = "batch pos d_mlp"
_LABELS = "batch pos label"

_BLOCK = {
    "hook_resid_pre": _STREAM,
    "hook_attn_in": _PER_HEAD,
    "hook_q_input": _PER_HEAD,
    "hook_k_input": _PER_HEAD,
    "hook_v_input": _PER_HEAD,
    "ln1.hook_scale": _SCALE,
    "ln1.hook_normalized": _STREAM,
    "attn.hook_q": _HEADS,
    "attn.hook_k": _HEADS,
    "attn.hook_v": _HEADS,
    "attn.q_norm.hook_scale": _HEAD_SCALE,
    "attn.q_norm.hook_normalized": _HEADS,
    "attn.k_norm.hook_scale": _HEAD_SCALE,
    "attn.k_norm.hook_normalized": _HEADS,
    "attn.hook_rot_q": _HEADS,
    "attn.hook_rot_k": _HEADS,
    "attn.hook_attn_scores": _SQUARE,
    "attn.hook_pattern": _SQUARE,
    "attn.hook_z": _HEADS,
    "attn.hook_result": _PER_HEAD,
    "ln1_post.hook_scale": _SCALE,
    "ln1_post.hook_normalized": _STREAM,
    "hook_attn_out": _STREAM,
    "hook_resid_mid": _STREAM,
    "hook_mlp_in": _STREAM,
    "ln2.hook_scale": _SCALE,
    "ln2.hook_normalized": _STREAM,
    "mlp.hook_pre": _NEURONS,
    "mlp.hook_pre_linear": _NEURONS,
    "mlp.hook_mid": _NEURONS,
    "mlp.ln.hook_scale": _SCALE,
    "mlp.ln.hook_normalized": _NEURONS,
    "mlp.hook_post": _NEURONS,
    "mlp.hook_expert_indices": "batch pos k",
    "mlp.hook_expert_weights": "batch pos k",
    "ln2_post.hook_scale": _SCALE,
    "ln2_post.hook_normalized": _STREAM,
    "hook_mlp_out": _STREAM,
    "hook_resid_post": _STREAM,
    "hook_normalized_resid_post": _STREAM,
}

# What a block has in attention's place that carries a state from token to token (Mamba).
_MIXER = {
    "mixer.hook_in": _STREAM,
    "mixer.in_proj.hook_out": "batch pos d_proj",
    "mixer.conv1d.hook_out": "batch pos d_conv",
    "mixer.x_proj.hook_out": "batch pos d_select",
    "mixer.dt_proj.hook_out": "batch pos d_inner",
    "mixer.hook_ssm_write": "batch pos head d_head d_state",
    "mixer.hook_ssm_state": "batch pos head d_head d_state",
    "mixer.inner_norm.hook_out": "batch pos d_inner",
    "mixer.out_proj.hook_in": "batch pos d_inner",
    "mixer.hook_out": _STREAM,
}

# What a decoder's block has that reads an encoder, between its attention and its neurons.
_CROSS = {
    "hook_cross_attn_in": _STREAM,
    "cross_attn.hook_q": _HEADS,
    "cross_attn.hook_k": _HEADS,
    "cross_attn.hook_v": _HEADS,
    "cross_attn.hook_attn_scores": _SQUARE,
    "cross_attn.hook_pattern": _SQUARE,
    "cross_attn.hook_z": _HEADS,
    "cross_attn.hook_result": _PER_HEAD,
    "hook_cross_attn_out": _STREAM,
    "hook_resid_mid_cross": _STREAM,
    "ln3.hook_scale": _SCALE,
    "ln3.hook_normalized": _STREAM,
}

# What a block has of a query stream: it reads the keys and values of the content's.
_QUERY = (
    "hook_resid_pre hook_q_input attn.hook_q attn.hook_attn_scores attn.hook_pattern attn.hook_z "
    "attn.hook_result hook_attn_out hook_resid_mid ln1.hook_scale ln1.hook_normalized hook_mlp_in "
    "mlp.hook_pre mlp.hook_post hook_mlp_out hook_resid_post ln2.hook_scale ln2.hook_normalized "
    "hook_normalized_resid_post".split()
)

BLOCKS, ENCODER, DECODER = "blocks", "encoder", "decoder"  # the stacks a site may be in
QUERY = "query"  # the second stream of XLNet's blocks
QUERY_EMBED = "query.hook_embed"  # what enters it
MEMORY = "hook_encoder_out"  # what a decoder reads of its encoder, after the last norm

# Within a block: sites with one head per key-value head; the inputs of the heads; the norm before;
# what is made of the memory; what has a query and a key, and which of these are masked with -inf.
GROUPED = frozenset(
    {
        "hook_k_input",
        "hook_v_input",
        "attn.hook_k",
        "attn.hook_v",
        "attn.k_norm.hook_scale",
        "attn.k_norm.hook_normalized",
        "attn.hook_rot_k",
        "cross_attn.hook_k",
        "cross_attn.hook_v",
    }
)
OF_MEMORY = frozenset({"cross_attn.hook_k", "cross_attn.hook_v"})
SCORES = frozenset({"attn.hook_attn_scores", "cross_attn.hook_attn_scores"})
ACROSS = frozenset({"cross_attn.hook_attn_scores", "cross_attn.hook_pattern"})
SQUARES = frozenset({*SCORES, *ACROSS, "attn.hook_pattern"})
HEAD_INPUTS = frozenset({"hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"})
READ_NORM = frozenset({"ln1.hook_scale", "ln1.hook_normalized"})

AXES: Mapping[str, str] = MappingProxyType(
    {
        "hook_embed": _STREAM,
        "hook_pos_embed": _STREAM,
        "hook_token_type_embed": _STREAM,
        "embed.ln.hook_scale": _SCALE,
        "embed.ln.hook_normalized": _STREAM,
        "decoder.hook_embed": _STREAM,
        "decoder.hook_pos_embed": _STREAM,
        "decoder.embed.ln.hook_scale": _SCALE,
        "decoder.embed.ln.hook_normalized": _STREAM,
        **{f"{BLOCKS}.{{}}.{name}": axes for name, axes in (_BLOCK | _MIXER).items()},
        **{f"{ENCODER}.{{}}.{name}": axes for name, axes in _BLOCK.items()},
        "encoder_final_ln.hook_scale": _SCALE,
        "encoder_final_ln.hook_normalized": _STREAM,
        MEMORY: _STREAM,
        QUERY_EMBED: _STREAM,
        **{f"{QUERY}.{{}}.{name}": _BLOCK[name] for name in _QUERY},
        **{f"{DECODER}.{{}}.{name}": axes for name, axes in (_BLOCK | _CROSS).items()},
        "decoder_final_ln.hook_scale": _SCALE,
        "decoder_final_ln.hook_normalized": _STREAM,
        "hook_full_embed": _STREAM,
        "ln_final.hook_scale": _SCALE,
        "ln_final.hook_normalized": _STREAM,
        "pooler.ln.hook_scale": _SCALE,
        "pooler.ln.hook_normalized": _STREAM,
        "pooler.hook_pooler_out": _STREAM,
        "nsp_head.hook_nsp_out": _LABELS,
        "mlm_head.hook_pre": _STREAM,
        "mlm_head.hook_post": _STREAM,
        "mlm_head.ln.hook_scale": _SCALE,
        "mlm_head.ln.hook_normalized": _STREAM,
        "classifier.hook_out": _LABELS,
        "hook_unembed": "batch pos d_vocab",
    }
)
