"""Tiny mT5s: always gated, never scaled."""

from typing import Any

from tests.families import Example, made
from tests.two_stacks.t5 import T5

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated silu": {"feed_forward_proj": "gated-silu"},
    "three heads, as many layers": {"num_heads": 3, "num_decoder_layers": None},
}


def build(**changes: Any) -> Any:
    """A Hugging Face mT5 with random weights."""
    from transformers import MT5Config, MT5ForConditionalGeneration

    plain: dict[str, Any] = {**T5, "feed_forward_proj": "gated-gelu"}
    return made(MT5Config(**{**plain, **changes}), MT5ForConditionalGeneration)


EXAMPLE = Example(build, VARIANTS)
