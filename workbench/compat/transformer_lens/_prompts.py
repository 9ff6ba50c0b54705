# ruff: noqa: PT028 - test_prompt is the classic name of no test
"""Whether a model knows the answer to a prompt, printed: a first look before any analysis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.compat.transformer_lens._terminal import say
from workbench.core.errors import EmptySelectionError


@runtime_checkable
class PromptModel(Protocol):
    """What is asked of a model: text to tokens and back, and logits."""

    def __call__(self, input: Int[Tensor, "batch pos"]) -> Any:  # noqa: A002
        """The logits."""
        ...

    def to_tokens(self, input: str, *, prepend_bos: bool | None) -> Int[Tensor, "1 pos"]:  # noqa: A002
        """The ids of a text."""
        ...

    def to_str_tokens(self, input: str, *, prepend_bos: bool | None) -> Any:  # noqa: A002
        """The tokens of a text, as texts."""
        ...

    def to_string(self, tokens: Tensor) -> Any:
        """The text of ids."""
        ...


@final
@dataclass(frozen=True, eq=False)
class _Answer:
    ids: Int[Tensor, " pos"]
    words: tuple[str, ...]


def test_prompt(  # noqa: PLR0913 - the classic signature
    prompt: str,
    answer: str | list[str],
    model: PromptModel,
    prepend_space_to_answer: bool = True,  # noqa: FBT001, FBT002
    print_details: bool = True,  # noqa: FBT001, FBT002
    prepend_bos: bool | None = None,  # noqa: FBT001
    top_k: int = 10,
) -> None:
    """Prints rank, logit and probability of each token of an answer, and the likeliest tokens.

    Of several answers only the first token of each is looked at. One forward.

    Raises:
        EmptySelectionError: If there is no answer, or an empty one.
    """
    asked = model.to_tokens(prompt, prepend_bos=prepend_bos)
    answers = _answers(model, answer, prepend_space=prepend_space_to_answer)
    length = 1 if len(answers) > 1 else len(answers[0].ids)
    ids = torch.stack([one.ids[:length] for one in answers])
    with torch.no_grad():
        logits = model(torch.cat([asked.expand(len(ids), -1), ids], 1))
    if print_details:
        words = model.to_str_tokens(prompt, prepend_bos=prepend_bos)
        say(f"Tokenized prompt: {list(words)}")
        said = [list(one.words) for one in answers]
        say(f"Tokenized answers: {said}" if len(said) > 1 else f"Tokenized answer: {said[0]}")
    ranks: list[list[tuple[str, int]]] = []
    for step in range(length):
        at = logits[:, asked.shape[1] + step - 1]
        ranks.append(_ranks(at, ids[:, step], [one.words[step] for one in answers]))
        if print_details:
            _say_answers(at, ids[:, step], ranks[-1])
            _say_likeliest(model, at[0], top_k)
    say(f"Ranks of the answer tokens: {ranks if len(answers) > 1 else [r[0] for r in ranks]}")


def _answers(model: PromptModel, answer: str | list[str], *, prepend_space: bool) -> list[_Answer]:
    texts = [answer] if isinstance(answer, str) else answer
    if not texts or not all(texts):
        raise EmptySelectionError("test_prompt needs an answer of at least one token.")
    spaced = [text if text.startswith(" ") or not prepend_space else f" {text}" for text in texts]
    return [
        _Answer(
            model.to_tokens(text, prepend_bos=False)[0],
            tuple(model.to_str_tokens(text, prepend_bos=False)),
        )
        for text in spaced
    ]


def _ranks(
    logits: Float[Tensor, "answer d_vocab"], ids: Int[Tensor, " answer"], words: Sequence[str]
) -> list[tuple[str, int]]:
    own = logits.gather(1, ids[:, None])
    return list(zip(words, (logits > own).sum(1).tolist(), strict=True))


def _say_answers(logits: Tensor, ids: Tensor, ranks: list[tuple[str, int]]) -> None:
    say(f"Performance on answer token{'s' if len(ranks) > 1 else ''}:")
    shares = logits.softmax(-1)
    for row, (word, rank) in enumerate(ranks):
        logit, share = float(logits[row, ids[row]]), float(shares[row, ids[row]])
        say(f"Rank: {rank: <8} Logit: {logit:5.2f} Prob: {share:6.2%} Token: |{word}|")


def _say_likeliest(model: PromptModel, logits: Tensor, top_k: int) -> None:
    shares = logits.softmax(-1)
    for place, token in enumerate(logits.topk(min(top_k, len(logits))).indices):
        logit, share = float(logits[token]), float(shares[token])
        word = model.to_string(token[None])
        say(f"Top {place}th token. Logit: {logit:5.2f} Prob: {share:6.2%} Token: |{word}|")
