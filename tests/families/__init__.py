"""A tiny random model of every family, one file each, named like the family's own.

The contract tests run over all variants of each; a family to come adds a file here and one to
`workbench/models/families`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, final

from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.registry import discover

Changes = Mapping[str, Any]


@final
@dataclass(frozen=True)
class Example:
    """`build` makes the Hugging Face model of a config changed in some keys, with random weights.

    `variants` are changes that make other code run, by what they are; the plain config is one.
    `after_padding` says that transformers counts positions from the one after the id of pads.
    """

    build: Callable[..., Any]
    variants: Mapping[str, Changes]
    causal: bool = True
    after_padding: bool = False


def hf(family: str, **changes: Any) -> Any:
    """A family's Hugging Face model, random weights, patterns returned when asked for."""
    return EXAMPLES[family].build(**changes)


def made(config: Any, kind: Callable[[Any], Any]) -> Any:
    """A Hugging Face model whose every parameter is drawn; eager, which alone returns patterns."""
    config._attn_implementation = "eager"
    return tiny.randomised(kind(config), gain=0.8)  # logits near 1: 1e-5 is their rounding


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
