"""What a prompt may be: texts or token ids, read as rows of ids and checked against the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.core.errors import AlignmentError, OptionError, PromptError
from workbench.core.options import index, iterated

if TYPE_CHECKING:
    from workbench.core.protocols import Model

Prompt = str | Sequence[str | int | Sequence[int]] | Int[Tensor, "..."]


def token_rows(model: "Model", prompt: Prompt) -> list[tuple[int, ...]]:
    """The ids of each prompt, unpadded.

    Raises:
        PromptError: If a prompt is empty, beyond the context, or has ids outside the vocabulary.
    """
    check_model(model)
    rows = [_checked(model, i, ids) for i, ids in enumerate(_ids(model, prompt))]
    if not rows:
        raise PromptError("There is no prompt; pass a text, or a list of at least one.")
    return rows


def check_model(model: "Model") -> None:
    """Refuses what is no model, where the first forward would fail on it.

    Raises:
        OptionError: If it is a name, say, or a model of another library.
    """
    try:
        _ = model.sizes, model.tokenizer
    except AttributeError:
        made = "a Model, which wb.load makes of a name, a folder or a Hugging Face model"
        raise OptionError("model", f"{made}{_inner(model)}", model) from None


def _inner(given: Any) -> str:
    """A hint, where what was given instead of a model holds one, as a folded view does."""
    try:
        _ = given.model.sizes, given.model.tokenizer
    except AttributeError:
        return ""
    return ": pass its .model"


def texts_of(prompt: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several, as a tuple."""
    return (prompt,) if isinstance(prompt, str) else tuple(prompt)


def _ids(model: "Model", prompt: Prompt) -> list[tuple[int, ...]]:
    match prompt:
        case str():
            return [_encode(model, prompt)]
        case Tensor():
            if prompt.ndim not in (1, 2) or not _are_integers(prompt):
                raise PromptError(
                    f"Token ids must be integers (batch pos) or (pos), got {tuple(prompt.shape)} "
                    f"{prompt.dtype}."
                )
            return [tuple(map(int, row)) for row in torch.atleast_2d(prompt).tolist()]
        case [SupportsIndex(), *_]:
            return [_as_ids(prompt)]
        case [*parts]:
            return [_encode(model, one) if isinstance(one, str) else _as_ids(one) for one in parts]
        case _:
            return [_as_ids(prompt)]  # which says what a prompt is


def _as_ids(row: object) -> tuple[int, ...]:
    match row:
        case Tensor() if row.ndim == 1 and _are_integers(row):
            return tuple(map(int, row.tolist()))
        case [*parts]:
            return tuple(_as_id(part) for part in parts)
        case _:
            raise PromptError(f"A prompt is a text or token ids, got {type(row).__name__}.")


def _as_id(part: object) -> int:
    try:
        return index("a token id", part)
    except OptionError as error:
        raise PromptError(f"A prompt is a text or token ids: {error}") from None


def _are_integers(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _encode(model: "Model", text: str) -> tuple[int, ...]:
    if model.tokenizer is None:
        raise PromptError(f"{model.name} has no tokenizer: pass token ids, or load it with one.")
    return model.tokenizer.encode(text)


def _plain(model: "Model", text: str) -> tuple[int, ...]:
    """The ids of a text that goes on: no special token comes before or after it.

    Raises:
        PromptError: If there is no tokenizer.
    """
    if model.tokenizer is None:
        raise PromptError(f"{model.name} has no tokenizer: pass token ids, or load it with one.")
    return model.tokenizer.encode(text, special=False)


def open_rows(model: "Model", prompt: Prompt) -> list[tuple[int, ...]]:
    """The ids of prompts that go on, so that texts have no special tokens around them.

    Raises:
        PromptError: If a prompt is empty, beyond the context, or has ids outside the vocabulary.
    """
    texts = [prompt] if isinstance(prompt, str) else prompt
    if isinstance(texts, Tensor):
        return token_rows(model, texts)
    told = [_plain(model, one) if isinstance(one, str) else one for one in texts]
    return token_rows(model, cast("Prompt", told))


def target_rows(model: "Model", target: Prompt | None, count: int) -> list[tuple[int, ...]]:
    """The ids that each of `count` rows of a decoder has been given.

    Raises:
        OptionError: If nothing is given and the model has no token to start with.
        AlignmentError: If there are neither one nor `count`.
        PromptError: If one is empty, beyond the context, or has ids outside the vocabulary.
    """
    start = model.sizes.start_id
    if target is None:
        if start is None:
            raise OptionError("target", f"given: {model.name} has no start token", None)
        return [(start,)] * count
    texts = [target] if isinstance(target, str) else target
    if start is not None and not isinstance(target, Tensor):
        told = [
            (start, *_plain(model, one)) if isinstance(one, str) else one
            for one in iterated("target", texts)
        ]
        target = cast("Prompt", told)
    rows = token_rows(model, target)
    if len(rows) not in (1, count):
        raise AlignmentError(f"{count} prompts need 1 or {count} targets, got {len(rows)}.")
    return rows * count if len(rows) == 1 else rows


def _checked(model: "Model", index: int, ids: tuple[int, ...]) -> tuple[int, ...]:
    sizes = model.sizes
    if not ids:
        raise PromptError(f"Prompt {index} is empty; it needs at least one token.")
    if len(ids) > sizes.n_ctx:
        raise PromptError(
            f"Prompt {index} has {len(ids)} tokens; {model.name} reads at most {sizes.n_ctx}. "
            f"Shorten it by {len(ids) - sizes.n_ctx}."
        )
    strange = [i for i in ids if not 0 <= i < sizes.d_vocab]
    if strange:
        raise PromptError(f"Prompt {index} has ids outside 0…{sizes.d_vocab - 1}: {strange[:5]}.")
    return ids
