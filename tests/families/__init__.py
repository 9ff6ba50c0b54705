"""A tiny random model of every family, one file each, named like the family's own.

The contract tests run over all variants of each; a family to come adds a file here and one to
`workbench/models/families`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from tests import tiny
from workbench.core.registry import discover

Changes = Mapping[str, Any]


@final
@dataclass(frozen=True)
class Example:
    """`build` makes the Hugging Face model of a config changed in some keys, with random weights.

    `variants` are changes that make other code run, by what they are; the plain config is one.
    """

    build: Callable[..., Any]
    variants: Mapping[str, Changes]


def hf(family: str, **changes: Any) -> Any:
    """A family's Hugging Face model, random weights, patterns returned when asked for."""
    return EXAMPLES[family].build(**changes)


def made(config: Any, kind: Callable[[Any], Any]) -> Any:
    """A Hugging Face model whose every parameter is drawn; eager, which alone returns patterns."""
    config._attn_implementation = "eager"
    return tiny.randomised(kind(config), gain=0.8)  # logits near 1: 1e-5 is their rounding


def around_zero(model: Any) -> Any:
    """The same with norms' weights less 1: for families that multiply by 1 + weight."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and name.endswith("weight"):
                weight.sub_(1)
    return model


EXAMPLES = discover("tests.families", "EXAMPLE", Example)
