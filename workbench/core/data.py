"""What goes into a run: prompts as a batch of tokens, and contrasts of two prompts.

Notable: padding is ours, an argument, and never a tokenizer's state; a batch knows the absolute
position of each token, so padding on either side changes no result by more than rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.asked import Answer, Asked, Types, answer_ids, asked_of, beside
from workbench.core.axes import Positions, Real, Segment, Tokens
from workbench.core.errors import AlignmentError, OptionError, PromptError, ShapeError
from workbench.core.pairs import paired
from workbench.core.prompts import Prompt, check_model, target_rows, token_rows
from workbench.core.seen import Seen, seen_of
from workbench.core.standing import Content, Keys, Place

if TYPE_CHECKING:
    from workbench.core.protocols import Model

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

    Where there is an encoder, these are the tokens of the target, and `source` those it reads;
    `encoded` says that an earlier pass read them, so that a stream has columns of the target only.
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
    source: "Batch | None" = None
    encoded: bool = False
    targets: Int[Tensor, "batch pos"] | None = None
    memory: Segment = ()
    backward: Bool[Tensor, " batch"] | None = None

    @property
    def width(self) -> int:
        """The columns of a stream: those of the source, if it has any, before the tokens'."""
        return self.ahead + self.tokens.shape[1]

    @property
    def ahead(self) -> int:
        """The columns of the source at the beginning of a stream."""
        return 0 if self.source is None or self.encoded else self.source.tokens.shape[1]

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
        told = tokens, self.said, self._keys()
        return Place(self.positions, self.real, self.prompt, low, high, *ends, *told)

    def _keys(self) -> Keys | None:
        if self.keys is not None or not self.memory:
            return self.keys
        own = self.positions
        own = own if self.real is None else own.masked_fill(~self.real, -1)
        return torch.nn.functional.pad(own, (self.memory[0].shape[1], 0), value=-1)

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
        return Batch(
            tokens,
            real,
            done,
            self.prompt,
            said,
            seen,
            types=types,
            asked=asked,
            source=self.source,
            encoded=self.encoded or first > 0,
            targets=None if self.targets is None else self.targets[:, first:last],
            memory=self.memory,
            backward=self.backward,
        )

    def _seen(self, first: int, last: int | None) -> Seen | None:
        if self.seen is None:
            return None
        before = self.seen.shape[3] - self.seen.shape[2]  # the keys of earlier passes
        return self.seen[:, :, first:last, : None if last is None else before + last]

    def since(self, column: int) -> "Batch":
        """The pass over the columns of a stream from `column` on, those before it being done."""
        if not column or not self.ahead:
            return self.columns(column)
        return replace(self.columns(column - self.ahead), encoded=True)

    def repeat(self, times: int) -> "Batch":
        """The whole batch, `times` over: all its rows, then all of them again."""
        real = None if self.real is None else self.real.repeat(times, 1)
        tokens = self.tokens.repeat(times, 1)
        said = None if self.said is None else self.said.repeat(times, 1)
        start, prompt, seen = self.start.repeat(times), self.prompt.repeat(times), self.seen
        if seen is not None and len(seen) > 1:
            seen = seen.repeat(times, 1, 1, 1)
        source = None if self.source is None else self.source.repeat(times)
        types = None if self.types is None else self.types.repeat(times, 1)
        asked = None if self.asked is None else self.asked.repeat(times)
        return Batch(
            tokens,
            real,
            start,
            prompt,
            said,
            seen,
            types=types,
            asked=asked,
            source=source,
            encoded=self.encoded,
            targets=None if self.targets is None else self.targets.repeat(times, 1),
            memory=tuple(stream.repeat(times, 1, 1) for stream in self.memory),
            backward=None if self.backward is None else self.backward.repeat(times),
        )


def batch_of(  # noqa: PLR0913 - all that a batch is made of
    model: "Model",
    prompt: Prompt,
    *,
    pair: str | Sequence[str] | None = None,
    padding_side: PaddingSide = "right",
    attention_mask: Tensor | None = None,
    token_types: Types = None,
    answer: Asked = None,
    target: Prompt | None = None,
    memory: Segment = (),
) -> Batch:
    """Tokens of one prompt or several, padded on one side, checked against the model.

    `pair` is a second text for each prompt, one for all or one for each: both are put into one row
    with the special tokens that the model expects around and between them, and with token types
    where the model knows them. `token_types` are those of each row's tokens, in the prompts' shape.
    `answer` is the position that metrics read, one or one for each row, negative ones from a row's
    end. Left out, a masked language model is asked about the one masked token, a classifier of
    texts about the first.

    A model with an encoder reads the prompts there; its decoder has been given `target`, one for
    all prompts or one for each: texts, which begin with the model's start token, or token ids as
    they are; None: the start token alone.

    `memory` are the streams of an earlier segment (see `workbench.models.two_stream`). A model with
    a query stream is asked for the token after each prompt; `workbench.core.predictions` has more.

    With `attention_mask`, of zeros and ones in the shape of the ids (batch pos), the tokens at
    zeros are pads wherever they stand: nobody sees them, and they take no position. One by query
    and key (batch|1 head|1 query key) makes no pads (see `workbench.core.seen`).

    Raises:
        PromptError: If a prompt is empty, beyond the context, or has ids outside the vocabulary.
        OptionError: If `padding_side` is neither "left" nor "right", or the mask is no mask, or
            there is a target and no decoder for it.
        ShapeError: If the mask does not fit the ids.
        AlignmentError: If there are neither one nor as many targets, or second texts, as prompts.
    """
    if padding_side not in ("left", "right"):
        raise OptionError("padding_side", "'left' or 'right'", padding_side)
    check_model(model)
    if pair is not None:
        prompt, token_types = paired(model, prompt, pair, token_types)
    if model.sizes.n_encoder_layers:
        if token_types is not None:
            raise OptionError("token_types", "left out: this model knows none", token_types)
        source = _source(model, token_rows(model, prompt), padding_side, attention_mask)
        given = padded(model, target_rows(model, target, len(source.tokens)), padding_side, None)
        return replace(asked_of(model, given, None, answer), source=source)
    if target is not None:
        raise OptionError("target", f"left out: {model.name} has no encoder", target)
    if model.sizes.predicts:
        from workbench.core.predictions import next_batch  # which builds on this file

        if attention_mask is not None:
            raise OptionError("attention_mask", "left out: see `target_batch`", "given")
        return next_batch(
            model, prompt, padding_side=padding_side, token_types=token_types, memory=memory
        )
    batch = padded(model, token_rows(model, prompt), padding_side, attention_mask)
    return beside(model, asked_of(model, batch, token_types, answer), memory)


def _source(
    model: "Model", rows: list[tuple[int, ...]], side: PaddingSide, mask: Tensor | None
) -> Batch:
    """What an encoder reads.

    Raises:
        OptionError: If the mask is one by query and key.
    """
    if mask is not None and mask.ndim == 4:
        raise OptionError("attention_mask", "by token (batch pos), of the source", "4 axes")
    return padded(model, rows, side, mask)


def padded(
    model: "Model",
    rows: list[tuple[int, ...]],
    padding_side: PaddingSide,
    attention_mask: Tensor | None,
) -> Batch:
    """Rows of tokens as a batch; nothing of it is checked but the mask."""
    if attention_mask is not None and attention_mask.ndim != 4:
        return _masked(model, rows, attention_mask)
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
    return Batch(tokens, real if any(pads) else None, start, lengths, seen=seen)


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
