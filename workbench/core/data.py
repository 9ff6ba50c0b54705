"""What goes into a run: prompts as a batch of tokens, and contrasts of two prompts.

Notable: padding is ours, an argument, and never a tokenizer's state; a batch knows the absolute
position of each token, so padding on either side changes no result by more than rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, final

import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from workbench.core.asked import Answer, Asked, Types, answer_ids, asked_of
from workbench.core.axes import Positions, Real, Tokens
from workbench.core.errors import AlignmentError, OptionError, PromptError, ShapeError
from workbench.core.options import index
from workbench.core.seen import Seen, seen_of
from workbench.core.standing import Content, Keys, Place

if TYPE_CHECKING:
    from workbench.core.protocols import Model

Prompt = str | Sequence[str | int | Sequence[int]] | Int[Tensor, "..."]
PaddingSide = Literal["left", "right"]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """The tokens of one pass, where they stand, and which are pads.

    `start` counts the content tokens before this pass (those in the cache), `prompt` the content
    tokens of each row's prompt; `real` is None where there are no pads. `said` are the content
    tokens by absolute position, -1 where there is none yet: what scopes that look for tokens need
    where a pass continues another. `seen` says which keys a query may see, of those that causality
    and pads leave; its keys are all columns up to this pass's last; None: all of them. `keys` tells
    the columns of a cache, those of this pass included: the position of each, -1 for a pad; None
    where a row's stand without a gap.
    """

    tokens: Tokens
    real: Real | None
    start: Int[Tensor, " batch"]
    prompt: Int[Tensor, " batch"]
    said: Content | None = None
    seen: Seen | None = None
    keys: Keys | None = None
    types: Int[Tensor, "batch pos"] | None = None
    asked: Int[Tensor, " batch"] | None = None

    @cached_property
    def positions(self) -> Positions:
        """Absolute content positions; a pad has that of the content token before it, or 0."""
        if self.real is None:
            steps = torch.arange(self.tokens.shape[1], device=self.tokens.device)
            return self.start[:, None] + steps
        return (self.start[:, None] + self.real.cumsum(1) - 1).clamp(min=0)

    @cached_property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Content tokens of each row, in this pass."""
        if self.real is None:
            return torch.full_like(self.start, self.tokens.shape[1])
        return self.real.sum(1)

    @cached_property
    def ends(self) -> Int[Tensor, " batch"]:
        """Content tokens of each row, those before this pass included."""
        return self.start + self.lengths

    @cached_property
    def last(self) -> Int[Tensor, " batch"]:
        """The column of each row's last content token."""
        if self.real is None:
            return torch.full_like(self.start, self.tokens.shape[1] - 1)
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (columns * self.real).argmax(1)

    @property
    def answer(self) -> Int[Tensor, " batch"]:
        """The column of each row that metrics read: its last token's, where none is asked about.

        Raises:
            OptionError: If it is not known of a row.
        """
        if self.asked is None:
            return self.last
        if unknown := [row for row, at in enumerate(self.asked.tolist()) if at < 0]:
            wanted = f"given for the rows {unknown}, which have not exactly one masked token"
            raise OptionError("answer", f"{wanted}: wb.batch_of(model, prompt, answer=…)", "none")
        return self.asked

    @cached_property
    def uniform(self) -> bool:
        """Whether all rows stand at the same positions."""
        return self.real is None and bool((self.start == self.start[0]).all())

    @cached_property
    def place(self) -> Place:
        """Where the tokens stand, for scopes."""
        low, high = int(self.positions.min()), int(self.positions.max())
        ends = int(self.prompt.min()), int(self.prompt.max())
        whole = self.said is None and low == 0 and not bool(self.start.any())
        tokens = self.tokens if whole else None
        told = tokens, self.said, self.keys
        return Place(self.positions, self.real, self.prompt, low, high, *ends, *told)

    def columns(self, first: int, last: int | None = None) -> "Batch":
        """The pass over the columns from `first` to `last` (exclusive), those before being done."""
        known = self.said is not None or self.place.tokens is not None
        said = self.place.content if known else None
        tokens, done, real = self.tokens[:, first:last], self.start + first, None
        if self.real is not None:
            done = self.start + self.real[:, :first].sum(1)
            real = self.real[:, first:last]
        seen = self._seen(first, last)
        types = None if self.types is None else self.types[:, first:last]
        asked = self.asked  # of a row asked about before these columns, any: it cannot move
        if asked is not None:
            asked = torch.where(asked < 0, asked, (asked - first).clamp(min=0))
        return Batch(tokens, real, done, self.prompt, said, seen, types=types, asked=asked)

    def _seen(self, first: int, last: int | None) -> Seen | None:
        if self.seen is None:
            return None
        before = self.seen.shape[3] - self.seen.shape[2]  # the keys of earlier passes
        return self.seen[:, :, first:last, : None if last is None else before + last]

    def since(self, column: int) -> "Batch":
        """The pass over the columns from `column` on, those before it being done."""
        return self.columns(column)

    def repeat(self, times: int) -> "Batch":
        """The whole batch, `times` over: all its rows, then all of them again."""
        real = None if self.real is None else self.real.repeat(times, 1)
        tokens = self.tokens.repeat(times, 1)
        said = None if self.said is None else self.said.repeat(times, 1)
        start, prompt, seen = self.start.repeat(times), self.prompt.repeat(times), self.seen
        if seen is not None and len(seen) > 1:
            seen = seen.repeat(times, 1, 1, 1)
        types = None if self.types is None else self.types.repeat(times, 1)
        asked = None if self.asked is None else self.asked.repeat(times)
        return Batch(tokens, real, start, prompt, said, seen, types=types, asked=asked)


def batch_of(
    model: "Model",
    prompt: Prompt,
    *,
    padding_side: PaddingSide = "right",
    attention_mask: Tensor | None = None,
    token_types: Types = None,
    answer: Asked = None,
) -> Batch:
    """Tokens of one prompt or several, padded on one side, checked against the model.

    `token_types` are those of each row's tokens, in the prompts' shape. `answer` is the position
    that metrics read, one or one for each row, negative ones from a row's end. Left out, a masked
    language model is asked about the one masked token, a classifier of texts about the first.

    With `attention_mask`, of zeros and ones in the shape of the ids (batch pos), the tokens at
    zeros are pads wherever they stand: nobody sees them, and they take no position. One by query
    and key (batch|1 head|1 query key) makes no pads (see `workbench.core.seen`).

    Raises:
        PromptError: If a prompt is empty, beyond the context, or has ids outside the vocabulary.
        OptionError: If `padding_side` is neither "left" nor "right", or the mask is no mask.
        ShapeError: If the mask does not fit the ids.
    """
    if padding_side not in ("left", "right"):
        raise OptionError("padding_side", "'left' or 'right'", padding_side)
    rows = token_rows(model, prompt)
    if attention_mask is not None and attention_mask.ndim != 4:
        return asked_of(model, _masked(model, rows, attention_mask), token_types, answer)
    longest = max(map(len, rows))
    pads = [longest - len(row) for row in rows]
    filled = [
        [0] * pad + list(row) if padding_side == "left" else list(row) + [0] * pad
        for row, pad in zip(rows, pads, strict=True)
    ]
    tokens = torch.tensor(filled, device=model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    columns = torch.arange(longest, device=model.device)
    missing = torch.tensor(pads, device=model.device)[:, None]
    real = columns >= missing if padding_side == "left" else columns < longest - missing
    seen = None
    if attention_mask is not None:
        mask = attention_mask.to(model.device)
        seen = seen_of(mask, len(rows), model.sizes.n_heads, longest)
    start = torch.zeros_like(lengths)
    batch = Batch(tokens, real if any(pads) else None, start, lengths, seen=seen)
    return asked_of(model, batch, token_types, answer)


def _masked(model: "Model", rows: list[tuple[int, ...]], mask: Tensor) -> Batch:
    expected = (len(rows), len(rows[0]))
    if tuple(mask.shape) != expected or any(len(row) != expected[1] for row in rows):
        lengths = sorted({len(row) for row in rows})
        got = f"{tuple(mask.shape)} for {len(rows)} rows of {lengths} tokens"
        wanted = "the shape of the ids (batch pos), or (batch head query key)"
        raise ShapeError("attention_mask", wanted, got)
    real = mask.to(model.device) == 1
    if not bool((real | (mask.to(model.device) == 0)).all()):
        raise OptionError("attention_mask", "made of zeros and ones", mask.unique().tolist())
    if empty := [row for row, some in enumerate(real.any(1).tolist()) if not some]:
        raise PromptError(f"attention_mask hides every token of the rows {empty}.")
    tokens, prompt = torch.tensor(rows, device=model.device), real.sum(1)
    return Batch(tokens, None if bool(real.all()) else real, torch.zeros_like(prompt), prompt)


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


@final
@dataclass(frozen=True, repr=False)
class Contrast:
    """A clean and a corrupt prompt that match token by token, with a target and a foil token.

    One example, or several as sequences of equal length; texts, or token ids. Nothing is known of
    a model here: `on(model)` makes tokens of it and checks the match.
    """

    clean: str | Sequence[str] | Sequence[Sequence[int]]
    corrupt: str | Sequence[str] | Sequence[Sequence[int]]
    target: Answer
    foil: Answer

    @override
    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={_brief(part)}" for name, part in vars(self).items())
        return f"Contrast({parts})"

    def on(self, model: "Model") -> "TokenContrast":
        """The contrast in this model's tokens.

        Costs two tokenisations; a method that needs it more than once keeps it.

        Raises:
            AlignmentError: If an example's prompts differ in length, or the counts differ.
            TokenError: If a target or foil is not one token.
            PromptError: If a prompt cannot be run.
        """
        clean, corrupt = token_rows(model, self.clean), token_rows(model, self.corrupt)
        if len(clean) != len(corrupt):
            raise AlignmentError(f"{len(clean)} clean prompts and {len(corrupt)} corrupt ones.")
        for example, (one, other) in enumerate(zip(clean, corrupt, strict=True)):
            _check_lengths(model, example, one, other)
        target = answer_ids(model, self.target, len(clean))
        foil = answer_ids(model, self.foil, len(clean))
        same = [i for i, (t, f) in enumerate(zip(target, foil, strict=True)) if t == f]
        if same:
            raise AlignmentError(f"example {same[0]}: target and foil are the same token.")
        return TokenContrast(batch_of(model, clean), batch_of(model, corrupt), target, foil)


@final
@dataclass(frozen=True, eq=False)
class TokenContrast:
    """A contrast in one model's tokens; padded on the right, so columns are positions."""

    clean: Batch
    corrupt: Batch
    target: tuple[int, ...]
    foil: tuple[int, ...]


def _brief(prompts: object) -> str:
    """The first of several prompts, and how many there are."""
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and len(prompts) > 1:
        return f"[{prompts[0]!r:.80}, …: {len(prompts)}]"
    return f"{prompts!r:.120}"


def _check_lengths(
    model: "Model", index: int, clean: tuple[int, ...], corrupt: tuple[int, ...]
) -> None:
    if len(clean) == len(corrupt):
        return
    pairs = enumerate(zip(clean, corrupt, strict=False))
    part = next((i for i, (one, other) in pairs if one != other), min(len(clean), len(corrupt)))
    shown = ""
    if model.tokenizer is not None and part < len(clean):
        shown = f" ({model.tokenizer.token_text(clean[part])!r})"
    raise AlignmentError(
        f"example {index}: clean has {len(clean)} tokens, corrupt {len(corrupt)}; they part at "
        f"position {part}{shown}."
    )
