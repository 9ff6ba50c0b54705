"""A tiny random model of every encoder–decoder family, one file each, named like the family's own.

`tests/contracts/test_two_stacks.py` runs over all variants of each.
"""

from typing import Any, final

from torch import Tensor

import workbench as wb
from tests import tiny
from tests.families import Example
from workbench.core.registry import discover
from workbench.models.encoder_decoder import EncoderDecoder

TWO_STACKS = discover("tests.two_stacks", "EXAMPLE", Example)


def hf(family: str, **changes: Any) -> Any:
    """A family's Hugging Face model, random weights, patterns returned when asked for."""
    return TWO_STACKS[family].build(**changes)


def model_of(family: str, **changes: Any) -> EncoderDecoder:
    """A family's tiny model, over a vocabulary of bytes."""
    model = wb.load(hf(family, **changes), tokenizer=tiny.Bytes())
    assert isinstance(model, EncoderDecoder)
    return model


@final
class Texts:
    """Sources and targets of unequal lengths, and what transformers makes of them."""

    sources = tuple(tuple(tiny.tokens(n, seed=n).tolist()) for n in (9, 4, 1))
    targets = tuple(tuple(tiny.tokens(n, seed=40 + n).tolist()) for n in (3, 6, 1))


def logits_of(theirs: Any, batch: Any) -> Tensor:
    """What transformers says of a batch of ours, with its masks."""
    source = batch.source
    masks = {"attention_mask": source.real, "decoder_attention_mask": batch.real}
    given = {name: mask.long() for name, mask in masks.items() if mask is not None}
    return theirs(input_ids=source.tokens, decoder_input_ids=batch.tokens, **given).logits
