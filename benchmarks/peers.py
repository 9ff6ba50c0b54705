"""The same weights three times: ours, transformers', and TransformerLens's bridge."""

from dataclasses import dataclass
from typing import Any, final

import torch

import workbench as wb
from workbench.models.checkpoint import resolve

MODEL = "smollm2-135m-instruct"
PROMPT = "My day was"


@final
@dataclass(frozen=True)
class Peers:
    """One model, three libraries."""

    ours: wb.Model
    theirs: Any  # transformers
    bridge: Any  # transformer-lens


def load() -> Peers:
    """Loads the default model in all three, float32, on the CPU."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    folder = str(resolve(MODEL))
    return Peers(
        ours=wb.load(MODEL),
        theirs=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        bridge=TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32),
    )


def tokens(rows: int, columns: int) -> torch.Tensor:
    """Random ids of the vocabulary's plain part."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(100, 49000, (rows, columns), generator=draws)
