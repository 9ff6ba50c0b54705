"""Writes the state dicts of tiny models as TransformerLens 2.18 itself writes them.

Run by hand, in an environment of its own (see make_models.py), never in CI. The file holds for each
configuration what `state_dict()` gives, buffers and all, the weights after
`load_and_process_state_dict` of that, and for grouped heads the stacked properties. Another holds a
digest of fresh weights for each mode of drawing them.

Processed weights are those of a model configured as folded (LNPre): under LN 2.18 goes on applying
the norm weights that the model had, after it has folded them too.
"""

import hashlib
import json
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
    "d_model": 8,
    "n_ctx": 6,
    "d_head": 4,
    "n_heads": 4,
    "d_vocab": 9,
    "d_mlp": 6,
    "act_fn": "gelu",
    "seed": 3,
    "device": "cpu",
}
ROTARY: dict[str, Any] = {"positional_embedding_type": "rotary"}
GATED: dict[str, Any] = {"normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu"}
CONFIGS: dict[str, dict[str, Any]] = {
    "layer_norm": {},
    "attention_only": {"attn_only": True, "act_fn": None, "d_mlp": None},
    "rotary_pairs": {**ROTARY, "rotary_adjacent_pairs": True, "rotary_dim": 2},
    "by_parts": {
        **ROTARY,
        "d_head": 8,
        "n_heads": 2,
        "rotary_base": 100,
        "use_NTK_by_parts_rope": True,
        "NTK_original_ctx_len": 40,
    },
    "grouped": {**ROTARY, **GATED, "n_key_value_heads": 2},
    "grouped_singly": {**ROTARY, **GATED, "n_key_value_heads": 4},
}
MODES = (
    *("gpt2", "xavier_uniform", "xavier_normal"),
    *("kaiming_uniform", "kaiming_normal", "muP"),
)
PROPERTIES = ("W_E", "W_U", "b_U", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
NEURONS = ("W_in", "W_gate", "W_out", "b_in", "b_out")


def made(config: dict[str, Any]) -> Any:
    """A model whose biases and norm weights hide no term."""
    model = ORACLE.HookedTransformer(ORACLE.HookedTransformerConfig(**config))
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=draws)
            leaf = name.rsplit(".", 1)[-1].lstrip("_")
            if leaf == "w":
                value.copy_(1 + 0.3 * noise)
            elif leaf.startswith("b"):
                value.copy_(0.3 * noise)
    return model


def fresh(mode: str) -> str:
    """A digest of the weights as they are drawn."""
    config = {**BASE, **CONFIGS["grouped"], "init_mode": mode}
    state = ORACLE.HookedTransformer(ORACLE.HookedTransformerConfig(**config)).state_dict()
    found = hashlib.sha256()
    for name in sorted(key for key in state if not key.endswith(BUFFERS)):
        found.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    """One file for all."""
    tensors: dict[str, Tensor] = {}
    for name, changes in CONFIGS.items():
        model = made({**BASE, **changes})
        raw = {key: value.clone() for key, value in model.state_dict().items()}
        tensors |= {f"{name}/raw/{key}": value for key, value in raw.items()}
        if name == "grouped":
            stacked = {key: getattr(model, key) for key in (*PROPERTIES, *NEURONS)}
            tensors |= {f"{name}/stacked/{key}": value for key, value in stacked.items()}
        folded = f"{model.cfg.normalization_type}Pre"
        model = made({**BASE, **changes, "normalization_type": folded})
        model.load_and_process_state_dict(dict(raw))
        processed = {k: v for k, v in model.state_dict().items() if not k.endswith(BUFFERS)}
        tensors |= {f"{name}/processed/{key}": value for key, value in processed.items()}
    kept = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    save_file(kept, HERE / "state_dicts.safetensors")
    drawn = {mode: fresh(mode) for mode in MODES}
    (HERE / "inits.json").write_text(json.dumps(drawn, indent=1) + "\n", encoding="utf-8")
    about = {name: {**BASE, **changes} for name, changes in CONFIGS.items()}
    (HERE / "state_dicts.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
