"""The same weights four times: ours, transformers', TransformerLens's bridge, and nnsight's."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, final

import torch

import workbench as wb
from workbench.models.checkpoint import resolve

MODEL = "smollm2-135m-instruct"
PROMPT = "My day was"


@final
@dataclass(frozen=True)
class Peers:
    """One model, four libraries; nnsight is an extra, and may be missing."""

    ours: wb.Model
    theirs: Any  # transformers
    bridge: Any  # transformer-lens
    nnsight: Any | None

    def traced(self, trace: Callable[..., Any], *given: Any) -> Mapping[str, Callable[[], Any]]:
        """What nnsight does, for the peers of a case: none where it is missing."""
        return {} if self.nnsight is None else {"nnsight": partial(trace, self.nnsight, *given)}


def load(*, whole: bool = False) -> Peers:
    """Loads the default model in all of them, float32, on the CPU; ours in whole tiles if asked."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    folder = str(resolve(MODEL))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Peers(
        ours=wb.load(MODEL, rearrange="whole" if whole else True),
        theirs=theirs,
        bridge=TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32),
        nnsight=_wrapped(theirs) if find_spec("nnsight") else None,
    )


def tokens(rows: int, columns: int) -> torch.Tensor:
    """Random ids of the vocabulary's plain part."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(100, 49000, (rows, columns), generator=draws)


def _wrapped(theirs: Any) -> Any:
    """A twin for nnsight: the very same tensors in modules of its own.

    It leaves its marks on the modules that it wraps, and the plain forward of transformers must
    not pay for them.
    """
    shared = {id(tensor): tensor for tensor in (*theirs.parameters(), *theirs.buffers())}
    nnsight: Any = import_module("nnsight")  # not there for whoever checks types
    return nnsight.NNsight(copy.deepcopy(theirs, shared))
