"""Classic tokens: what stands before a text, what fills it up, and nothing set on a tokenizer."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

import workbench as wb
from tests import tiny
from tests.compat.classic import raw
from workbench.compat.transformer_lens.hooked_transformer import HookedTransformer
from workbench.core.errors import OptionError, PromptError, ShapeError, TokenError
from workbench.models.tokenizer import Tokenizer

WORDS = ["<s>", "</s>", "the", "cat", "sat", "on", "mat"]


def words(*, automatic: bool, pad: bool = False) -> Tokenizer:
    """Whole words; puts <s> before a text by itself, or leaves it to the caller."""
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    if automatic:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>", **({"pad_token": "<s>"} if pad else {})}
    return Tokenizer(backend, named, (1,), special_ids=frozenset({0, 1}))


def facade(*, automatic: bool, pad: bool = False, side: Any = "right") -> HookedTransformer:
    """A tiny GPT-2 that reads words."""
    model = wb.load(tiny.hf("gpt2"), tokenizer=words(automatic=automatic, pad=pad))
    return HookedTransformer.from_pretrained_no_processing(model, default_padding_side=side)


@pytest.mark.parametrize("automatic", [True, False])
def test_the_beginning_token_stands_there_once_or_not_at_all(automatic: bool) -> None:
    made = facade(automatic=automatic)
    assert made.cfg.tokenizer_prepends_bos is automatic
    assert made.to_tokens("the cat").tolist() == [[0, 2, 3]]
    assert made.to_tokens("the cat", prepend_bos=False).tolist() == [[2, 3]]
    made.cfg.default_prepend_bos = False
    assert made.to_tokens("the cat").tolist() == [[2, 3]]
    assert made.to_tokens("the cat", prepend_bos=True).tolist() == [[0, 2, 3]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_filled_up_on_the_side_asked_for(side: Any) -> None:
    made = facade(automatic=False)
    rows = {"left": [[0, 2, 3], [1, 0, 4]], "right": [[0, 2, 3], [0, 4, 1]]}
    assert made.to_tokens(["the cat", "sat"], padding_side=side).tolist() == rows[side]
    other = facade(automatic=False, side=side)
    assert other.to_tokens(["the cat", "sat"]).tolist() == rows[side]


def test_a_pad_that_is_the_beginning_token_too_is_told_from_it() -> None:
    made = facade(automatic=False, pad=True, side="left")
    texts, alone = made(["the cat sat", "on"]), made("on")
    assert made.to_tokens(["the cat sat", "on"]).tolist()[1] == [0, 0, 0, 5]
    tiny.close(torch.as_tensor(texts)[1, 2:], torch.as_tensor(alone)[0], 1e-5)
    ids = made(made.to_tokens(["the cat sat", "on"]))
    tiny.close(torch.as_tensor(ids), torch.as_tensor(texts), 1e-6)


def test_texts_are_cut_to_the_context_unless_told_not_to() -> None:
    made = facade(automatic=False)
    assert made.to_tokens("cat " * 50).shape == (1, 32)
    assert made.to_tokens("cat " * 50, truncate=False).shape == (1, 51)


def test_tokens_print_one_by_one() -> None:
    made = raw("gpt2")
    assert made.to_str_tokens("ab") == ["<257>", "a", "b"]
    assert made.to_str_tokens("ab", prepend_bos=False) == ["a", "b"]
    assert made.to_str_tokens(torch.tensor([[97, 98]])) == ["a", "b"]
    assert made.to_str_tokens(["a", "bc"], prepend_bos=False) == [["a"], ["b", "c"]]
    assert made.to_string(torch.tensor([97, 98])) == "ab"
    assert made.to_string([[97], [98]]) == ["a", "b"]
    assert made.to_single_str_token(97) == "a"
    with pytest.raises(ShapeError):
        made.to_str_tokens(tiny.tokens(2, 3))


def test_a_text_is_one_token_or_an_error() -> None:
    made = raw("gpt2")
    assert made.to_single_token("a") == 97
    with pytest.raises(TokenError, match="'ab' must be one token and is 2"):
        made.to_single_token("ab")
    assert facade(automatic=True).to_single_token("cat") == 3


def test_a_token_is_found_first_or_last() -> None:
    made = raw("gpt2")
    assert made.get_token_position("a", "abca") == 1
    assert made.get_token_position("a", "abca", mode="last", prepend_bos=False) == 3
    assert made.get_token_position(98, torch.tensor([[97, 98]])) == 1
    with pytest.raises(TokenError, match="not in the prompt"):
        made.get_token_position("z", "abca")
    wrong: Any = "middle"
    with tiny.unchecked(), pytest.raises(OptionError, match="mode must be 'first' or 'last'"):
        made.get_token_position("a", "abca", mode=wrong)


def test_directions_are_columns_of_the_unembedding() -> None:
    made = raw("gpt2")
    ids = tiny.tokens(2, 3)
    assert torch.equal(made.tokens_to_residual_directions("a"), made.W_U[:, 97])
    assert torch.equal(made.tokens_to_residual_directions(torch.tensor(97)), made.W_U[:, 97])
    assert torch.equal(made.tokens_to_residual_directions(ids)[1, 2], made.W_U[:, ids[1, 2]])


def test_no_text_without_a_tokenizer_and_no_row_without_a_text() -> None:
    bare = HookedTransformer.from_pretrained_no_processing(wb.load(tiny.hf("gpt2")))
    with pytest.raises(PromptError, match="no tokenizer"):
        bare.to_tokens("a")
    sides: Any = "middle"
    with tiny.unchecked(), pytest.raises(OptionError, match="default_padding_side must be 'left'"):
        HookedTransformer.from_pretrained(wb.load(tiny.hf("gpt2")), default_padding_side=sides)
    with pytest.raises(PromptError, match="no text"):
        raw("gpt2").to_tokens([])
    bare.set_tokenizer(words(automatic=False))
    assert bare.to_tokens("cat").tolist() == [[0, 3]]


def test_threads_pad_on_different_sides_at_once() -> None:
    made, texts = facade(automatic=False), ["the cat", "sat"]
    options: list[dict[str, Any]] = [
        {"padding_side": side, "prepend_bos": before}
        for side in ("left", "right")
        for before in (True, False)
    ]
    alone = [made.to_tokens(texts, **each).tolist() for each in options]

    def work(which: int) -> bool:
        return all(
            made.to_tokens(texts, **options[which]).tolist() == alone[which] for _ in range(250)
        )

    with tiny.unchecked(), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
