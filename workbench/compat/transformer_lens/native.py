"""From the classic layout of weights to that of a stack: names, and shapes."""

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor

from workbench.models.layers.experts import Experts
from workbench.models.layers.mlp import GatedMLP
from workbench.models.transformer import Stack
from workbench.models.views.stacks import blocks_of

NORMS = ("ln1", "ln1_post", "ln2", "ln2_post", "attn.q_norm", "attn.k_norm", "mlp.ln")  # of a block


def native(name: str, value: Tensor) -> Tensor:
    """A classic weight in the layout of the stack's own tensor."""
    kind = name.rsplit(".", 1)[-1].lstrip("_")
    if kind in ("W_Q", "W_K", "W_V"):
        return rearrange(value, "head d_model d -> (head d) d_model")
    if kind == "W_O":
        return rearrange(value, "head d d_model -> d_model (head d)")
    if kind in ("b_Q", "b_K", "b_V"):
        return rearrange(value, "head d -> (head d)")
    return value.mT if kind in ("W_in", "W_gate", "W_out", "W_U") else value


def native_names(stack: Stack) -> Mapping[str, str]:
    """The stack's own names of all weights that the classic format can hold, by classic name."""
    table = {"embed.W_E": "embed.tokens", "pos_embed.W_pos": "embed.positions"}
    table |= {"unembed.W_U": "unembed.weight", "unembed.b_U": "unembed.bias"}
    for norm in ("ln_final", "embed.ln"):
        table |= {f"{norm}.w": f"{norm}.weight", f"{norm}.b": f"{norm}.bias"}
    for layer, block in enumerate(blocks_of(stack)):
        here, attn = f"blocks.{layer}", block.attn
        key = "_" if attn.n_heads != attn.n_groups else ""
        for part in "QKVO":
            own = key if part in "KV" else ""
            table[f"{here}.attn.{own}W_{part}"] = f"{here}.attn.{part.lower()}.weight"
            table[f"{here}.attn.{own}b_{part}"] = f"{here}.attn.{part.lower()}.bias"
        for norm in NORMS:
            table[f"{here}.{norm}.w"] = f"{here}.{norm}.weight"
            table[f"{here}.{norm}.b"] = f"{here}.{norm}.bias"
        if isinstance(block.mlp, Experts):
            names = expert_names(block.mlp).items()
            table |= {f"{here}.mlp.{old}": f"{here}.mlp.{new}" for old, new in names}
            continue
        inner = "inner" if isinstance(block.mlp, GatedMLP) else "up.bias"
        pairs = {"W_in": "up.weight", "W_out": "down.weight", "W_gate": "gate.weight"}
        pairs |= {"b_in": inner, "b_out": "down.bias"}
        table |= {f"{here}.mlp.{old}": f"{here}.mlp.{new}" for old, new in pairs.items()}
    return table


def expert_names(experts: Experts) -> Mapping[str, str]:
    """Of a mixture: the stack's own names of its weights by the classic's, which has linears."""
    table = {"W_gate.weight": "router.weight"}
    for place in range(len(experts.experts)):
        here = f"experts.{place}"
        pairs = {"W_in": "up", "W_out": "down", "W_gate": "gate"}.items()
        table |= {f"{here}.{old}.weight": f"{here}.{new}.weight" for old, new in pairs}
    return table
