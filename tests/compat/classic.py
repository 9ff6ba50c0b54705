"""What the tests of the classic interface share."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests import tiny
from workbench.compat.transformer_lens.hooked_transformer import HookedTransformer

IDS = tiny.tokens(2, 7)


@cache
def raw(kind: str, dtype: torch.dtype = torch.float32) -> HookedTransformer:
    """A facade over a tiny model with its own weights; shared, so nothing may be added to it."""
    return HookedTransformer.from_pretrained_no_processing(tiny.model(kind, dtype))


@cache
def folded(kind: str) -> HookedTransformer:
    """The same with the classic loader's defaults."""
    return HookedTransformer.from_pretrained(tiny.model(kind))


def fresh(kind: str = "gpt2") -> HookedTransformer:
    """One of a test's own, which it may hang hooks on."""
    return HookedTransformer.from_pretrained_no_processing(tiny.model(kind))


def logits(facade: HookedTransformer, given: Any = IDS, **options: Any) -> Tensor:
    """The logits of a forward."""
    found = facade(given, **options)
    assert isinstance(found, Tensor)
    return found
