"""A tiny random model of every family, one file each, named like the family's own.

The contract tests run over all variants of each; a family to come adds a file here and one to
`workbench/models/families`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.registry import discover
from workbench.models.config import ACTIVATIONS

Changes = Mapping[str, Any]


# Scalings of the rotation that every family with rotary positions is tried with.
SCALED: Mapping[str, Changes] = {
    "linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 500.0,
        "factor": 2.0,
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def residual(trace: Any, layer: int) -> None:
    """One after the other: what attention writes is added, then what the neurons write."""
    at = f"blocks.{layer}.hook_"
    mid = trace[f"{at}resid_pre"] + trace[f"{at}attn_out"]
    tiny.close(mid, trace[f"{at}resid_mid"], IDENTITY)
    tiny.close(mid + trace[f"{at}mlp_out"], trace[f"{at}resid_post"], IDENTITY)


def side_by_side(trace: Any, layer: int) -> None:
    """In parallel blocks both are added at once, and there is no stream between them."""
    at = f"blocks.{layer}.hook_"
    written = trace[f"{at}attn_out"] + trace[f"{at}mlp_out"]
    tiny.close(trace[f"{at}resid_pre"] + written, trace[f"{at}resid_post"], IDENTITY)


def normed_after(trace: Any, layer: int) -> None:
    """Where norms come after: the second sum is of the normalised first, and is normalised too."""
    at = f"blocks.{layer}."
    mid = trace[f"{at}hook_resid_pre"] + trace[f"{at}hook_attn_out"]
    tiny.close(mid, trace[f"{at}hook_resid_mid"], IDENTITY)
    written = trace[f"{at}ln1.hook_normalized"] + trace[f"{at}hook_mlp_out"]
    tiny.close(written, trace[f"{at}hook_resid_post"], IDENTITY)
    after = trace[f"{at}hook_normalized_resid_post"]
    tiny.close(after, trace[f"{at}ln2.hook_normalized"], IDENTITY)


IDENTITY = 1e-5  # float32: sums of three, of size 10 at most
Identity = Callable[[Any, int], None]

JOINT = tuple(f"attn.{one}.{kind}" for one in "qkv" for kind in ("weight", "bias"))


@final
@dataclass(frozen=True)
class Example:
    """`build` makes the Hugging Face model of a config changed in some keys, with random weights.

    `variants` are changes that make other code run, by what they are; the plain config is one.
    `after_padding` says that transformers counts positions from the one after the id of pads.
    `identity` asserts what the streams of one layer sum to, in most variants; `identities` has
    those of the others. The patterns of variants in `unlike` are not compared: transformers has
    none in that form. `spelling` renames the weights as the original checkpoints have them, and
    adds what these carry beside. Names of weights that are no view of the file's end in `copied`.
    """

    build: Callable[..., Any]
    variants: Mapping[str, Changes]
    identity: Identity = residual
    identities: Mapping[str, Identity] = field(default_factory=dict[str, Identity])
    unlike: frozenset[str] = frozenset()
    spelling: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    causal: bool = True
    after_padding: bool = False
    copied: tuple[str, ...] = ()


def only_activation(changes: Changes) -> bool:
    """Whether a variant differs from the plain one by an activation function alone."""
    return len(changes) == 1 and all(str(value) in ACTIVATIONS for value in changes.values())


def hf(family: str, **changes: Any) -> Any:
    """A family's Hugging Face model, random weights, patterns returned when asked for."""
    return EXAMPLES[family].build(**changes)


def made(config: Any, kind: Callable[[Any], Any], *, attention: str = "eager") -> Any:
    """A Hugging Face model whose every parameter is drawn; eager, which alone returns patterns."""
    config._attn_implementation = attention
    return tiny.randomised(kind(config), gain=0.8)  # logits near 1: 1e-5 is their rounding


def around_zero(model: Any) -> Any:
    """The same with norms' weights less 1: for families that multiply by 1 + weight."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and name.endswith("weight"):
                weight.sub_(1)
    return model


def kind_named(name: str) -> Callable[[Any], Any]:
    """A class of transformers."""
    import transformers

    return attrgetter(name)(transformers)


def said(theirs: Any) -> Tensor:
    """What a Hugging Face model of any head says: batch pos columns, or less."""
    names = ("prediction_logits", "logits", "last_hidden_state")
    return next(theirs[name] for name in names if theirs.get(name) is not None)


def said_like(trace: wb.Trace, theirs: Tensor) -> Tensor:
    """Our logits in the shape of theirs: perhaps of the first position only, or of one column."""
    if theirs.ndim == 3:
        return trace.logits
    if trace.logits.shape[-1] == 1 and trace.logits.shape[:2] == theirs.shape:
        return trace.logits[..., 0]
    return trace.answer_logits


EXAMPLES = discover("tests.families", "EXAMPLE", Example)
