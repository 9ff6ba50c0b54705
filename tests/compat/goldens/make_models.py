"""Writes the golden files: what TransformerLens 2.18 says of tiny models.

Run by hand, in an environment of its own, never in CI:

    python3.11 -m venv oracle
    oracle/bin/pip install "transformer-lens<3" torch==2.13.0 "pyarrow<22"
    WANDB_MODE=disabled HF_HUB_OFFLINE=1 oracle/bin/python tests/compat/goldens/make_models.py

Each file holds tensors only: fresh weights by seed (a digest of them), then weights whose biases
and norm weights are drawn from a generator, and with these the logits, losses, every activation,
and log-probabilities after `process_weights_` where 2.18 is right.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformer_lens
from safetensors.torch import save_file
from torch import Tensor

ORACLE: Any = transformer_lens  # 2.18, while the types of the repository's own are of 4.x
HERE = Path(__file__).parent
BASE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 32,
    "n_ctx": 10,
    "d_head": 4,
    "n_heads": 4,
    "d_vocab": 20,
    "d_mlp": 24,
    "act_fn": "gelu",
    "seed": 3,
    "device": "cpu",
}
ROTARY = {"positional_embedding_type": "rotary"}
CONFIGS: dict[str, dict[str, Any]] = {
    "layer_norm": {},
    "grouped_rms_gated_rotary": {
        **ROTARY,
        "n_key_value_heads": 2,
        "normalization_type": "RMS",
        "gated_mlp": True,
        "act_fn": "silu",
    },
    "layer_norm_gated": {"gated_mlp": True, "act_fn": "gelu_new"},
    "attention_only": {"attn_only": True, "act_fn": None, "d_mlp": None},
    "folded_layer_norm": {"normalization_type": "LNPre", "act_fn": "relu"},
    "folded_rms": {"normalization_type": "RMSPre", "act_fn": "gelu_fast"},
    "no_norm": {"normalization_type": None, "act_fn": "solu", "d_vocab_out": 13},
    "bidirectional": {"attention_dir": "bidirectional"},
    "final_rms": {"final_rms": True},
    "scales": {"attn_scale": 3.0, "scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"use_attn_scale": False, **ROTARY, "rotary_base": 100},
    "parallel": {"parallel_attn_mlp": True},
    "caps": {"attn_scores_soft_cap": 1.5, "output_logits_soft_cap": 2.0},
    "rotary_pairs": {
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": True,
        "d_head": 6,
        "rotary_dim": 4,
    },
}
LATER: dict[str, dict[str, Any]] = {
    "alibi": {"positional_embedding_type": "alibi"},
    "alibi_six": {"positional_embedding_type": "alibi", "n_heads": 6},
    "solu_ln": {"act_fn": "solu_ln"},
    "embedding_norm": {"positional_embedding_type": "alibi", "post_embedding_ln": True},
    "windows": {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 3},
    "query_key_norm": {**ROTARY, "use_qk_norm": True, "normalization_type": "RMS"},
    "experts": {
        **ROTARY,
        "num_experts": 4,
        "experts_per_token": 2,
        "normalization_type": "RMS",
        "act_fn": "silu",
    },
    "norms_around": {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
}
WRONG_PROCESSED = ("layer_norm_gated", "final_rms", "caps")  # 2.18 changes what these models say
NOT_PROCESSED = (
    *WRONG_PROCESSED,
    "folded_layer_norm",
    "folded_rms",
    "no_norm",
    "experts",
)  # or refuses
# Of the others only what their option changes.
WHOLE = ("layer_norm", "grouped_rms_gated_rotary", "layer_norm_gated", "attention_only", "no_norm")
PART = (
    "attn_scores",
    "hook_rot_q",
    "hook_rot_k",
    "resid_post",
    "ln_final.hook_normalized",
    "resid_pre",
)
MORE = (
    "mlp.hook_mid",
    "mlp.hook_post",
    "embed.ln.hook_normalized",
    "hook_pattern",
    "hook_attn_out",
)
FLAGS = ("use_attn_result", "use_hook_mlp_in")


BASE_WEIGHTS: dict[str, Tensor] = {}


def digest(state: dict[str, Tensor]) -> str:
    """Of every byte of the weights, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def weights(model: Any) -> dict[str, Tensor]:
    """Without the buffers."""
    buffers = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
    return {n: v.clone() for n, v in model.state_dict().items() if not n.endswith(buffers)}


def randomise(model: Any) -> None:
    """Biases and norm weights that hide no term."""
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=draws)
            leaf = name.rsplit(".", 1)[-1].lstrip("_")
            if leaf == "w":
                value.copy_(1 + 0.3 * noise)
            elif leaf.startswith("b"):
                value.copy_(0.3 * noise)


def make(name: str, options: dict[str, Any]) -> None:
    """One pair of files."""
    config = {**BASE, **options}
    flags = {} if config.get("n_key_value_heads") else dict.fromkeys(FLAGS, True)
    model = ORACLE.HookedTransformer(ORACLE.HookedTransformerConfig(**{**config, **flags}))
    fresh = digest(weights(model))
    randomise(model)
    ids = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(1))
    tensors: dict[str, Tensor] = {"ids": ids}
    drawn = weights(model)
    same = BASE_WEIGHTS.keys() == drawn.keys() and digest(BASE_WEIGHTS) == digest(drawn)
    if not same:
        tensors |= {f"weights/{n}": v for n, v in drawn.items()}
    if name == "layer_norm":
        BASE_WEIGHTS.update({n: v.clone() for n, v in drawn.items()})
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids)
        tensors["logits"] = logits
        part = (*PART, *MORE) if name in LATER else PART
        kept = {n: v for n, v in cache.items() if name in WHOLE or n.endswith(part)}
        tensors |= {f"cache/{n}": v for n, v in kept.items()}
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        if name != "bidirectional":  # where 2.18 takes no notice of the mask
            tensors["masked_logits"] = model(ids, attention_mask=mask)[0, 2:]
        if "d_vocab_out" not in config:
            tensors["loss"] = model(ids, return_type="loss")
            tensors["loss_per_token"] = model(ids, return_type="loss", loss_per_token=True)
        tensors["from_1"] = model(cache["resid_pre", 1], start_at_layer=1)
        if name not in NOT_PROCESSED:
            model.process_weights_()
            tensors["processed_log_probabilities"] = model(ids).log_softmax(-1)
    save_file({n: v.contiguous().clone() for n, v in tensors.items()}, HERE / f"{name}.safetensors")
    about = {
        "config": config,
        "fresh": fresh,
        "weights_of": "layer_norm" if same else name,
        "torch": torch.__version__,
        "transformer_lens": "2.18.0",
    }
    (HERE / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    make("layer_norm", CONFIGS["layer_norm"])  # whose weights others share
    for each, changes in (CONFIGS | LATER).items():
        if len(sys.argv) < 2 or each in sys.argv[1:]:
            make(each, changes)
