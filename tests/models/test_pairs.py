"""Two texts in one row: ids, types and logits are those of transformers, in every form of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.families import hf
from tests.two_stacks import hf as two_stacks
from tests.vocabularies import built
from workbench.core.errors import AlignmentError, OptionError
from workbench.models.tokenizer import Tokenizer

FIRST, SECOND = ["the cat sat", "Mary"], ["the dog and the cat", "had 12"]


def encoder(family: str, **changes: Any) -> tuple[Any, Any, Any]:
    """A tiny model with a tokenizer of words, ours and theirs, and that tokenizer."""
    tokenizer = built("BertTokenizer")
    theirs = hf(family, **changes)
    return wb.load(theirs, tokenizer=tokenizer), theirs, tokenizer


def test_a_pair_is_classified_as_transformers_classifies_it() -> None:
    changes = {"head": "ForSequenceClassification", "num_labels": 3}
    ours, theirs, tokenizer = encoder("bert", **changes)
    batch = wb.batch_of(ours, FIRST, pair=SECOND)
    told = tokenizer(FIRST, SECOND, padding=True, return_tensors="pt")
    assert batch.types is not None
    assert batch.real is not None
    assert torch.equal(batch.types, told["token_type_ids"])
    assert torch.equal(batch.tokens, told["input_ids"])  # its pads are 0, as ours
    with torch.no_grad():
        expected = theirs(**told).logits
    tiny.close(wb.run(ours, batch).answer_logits, expected, 1e-5)


def test_one_second_text_serves_all() -> None:
    ours, _, _ = encoder("bert")
    once = wb.batch_of(ours, FIRST, pair=SECOND[0])
    each = wb.batch_of(ours, FIRST, pair=[SECOND[0]] * 2)
    assert torch.equal(once.tokens, each.tokens)
    alone = wb.batch_of(ours, FIRST[0], pair=SECOND[0])
    assert alone.tokens.tolist() == [once.tokens[0].tolist()]


def test_a_model_without_types_has_the_ids_alone() -> None:
    ours, theirs, tokenizer = encoder("distilbert")
    batch = wb.batch_of(ours, FIRST[0], pair=SECOND[0])
    told = tokenizer(FIRST[0], SECOND[0], return_tensors="pt")
    assert batch.types is None
    with torch.no_grad():
        expected = theirs(told["input_ids"]).logits
    tiny.close(wb.run(ours, batch).logits, expected, 1e-5)


def test_an_encoder_that_is_read_by_a_decoder_reads_pairs_too() -> None:
    tokenizer = built("RobertaTokenizer")
    ours = wb.load(two_stacks("bart", vocab_size=400), tokenizer=tokenizer)
    batch = wb.batch_of(ours, FIRST[0], pair=SECOND[0])
    assert batch.source is not None
    assert batch.source.tokens[0].tolist() == tokenizer(FIRST[0], SECOND[0])["input_ids"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"prompt": [[1, 2]], "pair": "the"}, OptionError, "prompt must be a text, or several"),
        ({"prompt": "the", "pair": [3]}, OptionError, "pair must be a text, or several"),
        ({"prompt": FIRST, "pair": ["a"] * 3}, AlignmentError, "2 prompts need 1 or 2 second"),
        ({"prompt": "the", "pair": "a", "token_types": [0]}, OptionError, "token_types"),
    ],
    ids=["ids", "number", "three", "types"],
)
def test_what_is_no_pair_of_texts_is_refused(
    given: dict[str, Any], error: type[Exception], message: str, unchecked: None
) -> None:
    ours, _, _ = encoder("bert")
    with pytest.raises(error, match=message):
        wb.batch_of(ours, **given)


def test_a_vocabulary_without_pairs_is_named() -> None:
    with pytest.raises(OptionError, match="no tokenizer that knows pairs"):
        wb.batch_of(wb.load(hf("bert"), tokenizer=tiny.Bytes()), "a", pair="b")


@pytest.mark.asset("all-minilm-l6-v2")
def test_the_sentence_encoder_reads_a_pair_as_transformers_does() -> None:
    from transformers import AutoTokenizer

    model = wb.load("all-minilm-l6-v2")
    assert isinstance(model.tokenizer, Tokenizer)
    assert model.origin is not None
    assert isinstance(model.origin.folder, Path)
    tokenizer = AutoTokenizer.from_pretrained(str(model.origin.folder))
    told = tokenizer("A dog barks.", "It is loud.")
    pair = model.tokenizer.encode_pair("A dog barks.", "It is loud.")
    assert json.dumps(pair) == json.dumps([told["input_ids"], told["token_type_ids"]])
