"""Which tokens of a text are read: one of them, several, all, or what they have in common.

Notable: a rule is worked out for all texts before anything runs, on the host, from their tokens
alone. So the number of rows is known at the start, a text too short for its rule is refused there,
and a batch needs one small copy of indices to the device.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.data import Batch
from workbench.core.errors import AlignmentError, EmptySelectionError, OptionError
from workbench.core.options import index, indices
from workbench.core.provenance import digest

if TYPE_CHECKING:
    from workbench.core.protocols import Model

ReadPosition = Literal["last", "first", "mean", "max"] | int
Pool = Literal["mean", "max"]
Ids = Sequence[Sequence[int]]
Take = Callable[[Float[Tensor, "batch pos ..."]], Float[Tensor, "row d"]]
_POOLS: tuple[Pool, Pool] = ("mean", "max")
_WORDS = "'last', 'first', 'mean', 'max' or an index"
_SEVERAL = "'last', 'first', 'mean', 'max', 'all', an index, several, or Spans"


@final
@dataclass(frozen=True)
class Spans:
    """A stretch of tokens in each text, start <= position < stop, and what is read of it."""

    spans: tuple[tuple[int, int], ...]
    read: Literal["mean", "max", "first", "last", "all"] = "mean"

    @staticmethod
    def of_characters(
        model: "Model",
        texts: Sequence[str],
        characters: Sequence[tuple[int, int]],
        *,
        read: Literal["mean", "max", "first", "last", "all"] = "mean",
    ) -> "Spans":
        """The tokens that touch the characters from start to stop (exclusive) of each text.

        Raises:
            OptionError: If the model's tokenizer does not say where its tokens stand.
            EmptySelectionError: If no token of a text touches its characters.
            AlignmentError: If there are not as many spans as texts.
        """
        if not isinstance(model.tokenizer, Locating):
            raise OptionError("model", "one whose tokenizer has offsets", model.name)
        _check_count(len(characters), len(texts))
        found: list[tuple[int, int]] = []
        for text, (start, stop) in zip(texts, characters, strict=True):
            _, offsets = model.tokenizer.encode_with_offsets(text)
            inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
            if not inside:
                raise EmptySelectionError(f"No token of {text!r:.80} touches {start}…{stop}.")
            found.append((inside[0], inside[-1] + 1))
        return Spans(tuple(found), read)


ReadPositions = ReadPosition | Literal["all"] | Sequence[int] | Spans


@runtime_checkable
class Locating(Protocol):
    """A vocabulary that knows which characters each token stands for."""

    def encode_with_offsets(
        self, text: str, *, special: bool = True
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Ids, and the characters (start, stop) of each."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Where:
    """What each row of some activations was read of.

    `row` numbers the rows of the whole harvest, in the order of the texts and, within a text, of
    the positions asked for; `pos` and `token` are -1 where several tokens were pooled.
    """

    row: Int[Tensor, " row"]
    text: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]
    token: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: Int[Tensor, " some"] | slice) -> "Where":
        """Some of the rows, in their order."""
        return Where(self.row[rows], self.text[rows], self.pos[rows], self.token[rows])

    @staticmethod
    def joined(parts: Iterable["Where"]) -> "Where":
        """Several, one after another."""
        columns = [(part.row, part.text, part.pos, part.token) for part in parts]
        return Where(*map(torch.cat, zip(*columns, strict=True)))


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """A rule worked out: the positions of each text, one row for each or one for all of them."""

    at: tuple[Sequence[int], ...]  # by text, counted from its first token
    pool: Pool | None

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the rows of each text begin, and the number of all rows at the end."""
        counts = (1 if self.pool else len(positions) for positions in self.at)
        return tuple(accumulate(counts, initial=0))

    def where(self, texts: Sequence[int], ids: Ids, offsets: Sequence[int]) -> Where:
        """What the rows of these texts stand for."""
        columns = [
            (offsets[text] + nth, text, pos, -1 if pos < 0 else ids[text][pos])
            for text in texts
            for nth, pos in enumerate((-1,) if self.pool else self.at[text])
        ]
        return Where(*torch.tensor(columns, dtype=torch.long).T)

    def take(self, texts: Sequence[int], batch: Batch) -> Take:
        """What reads the rows of these texts, which are the batch's, from an activation."""
        first = (batch.last + 1 - batch.lengths).tolist()  # where the content of a row begins
        cells = list(self._cells(texts, first))
        rows, columns = torch.tensor(cells, dtype=torch.long, device=batch.tokens.device).T
        if self.pool is None:
            return lambda value: value[rows, columns].flatten(1)
        chosen = torch.zeros_like(batch.tokens, dtype=torch.bool)
        chosen[rows, columns] = True
        pool = self.pool
        return lambda value: pooled(value.flatten(2), chosen, pool)

    def _cells(self, texts: Sequence[int], first: Sequence[int]) -> Iterator[tuple[int, int]]:
        for row, text in enumerate(texts):
            for pos in self.at[text]:
                yield row, first[row] + pos


def pooled(
    value: Float[Tensor, "batch pos d"], chosen: Bool[Tensor, "batch pos"], pool: Pool
) -> Float[Tensor, "batch d"]:
    """The mean or the maximum over the chosen tokens of each row; in float32 at least."""
    wide = torch.promote_types(value.dtype, torch.float32)
    if pool == "max":
        hidden = ~chosen[..., None]
        return value.masked_fill(hidden, float("-inf")).amax(1).to(wide)
    weights = chosen.to(wide) / chosen.sum(1, keepdim=True)
    kept = torch.where(chosen[..., None], value, 0).to(wide)  # a pad may hold anything
    return torch.einsum("bp,bpd->bd", weights, kept)


def reading_of(position: ReadPositions, ids: Ids, bos_id: int | None) -> Reading:
    """The rule for these texts; `all`, `mean` and `max` leave out the model's BOS token.

    Raises:
        OptionError: If it is no rule, or a text is too short for it.
        EmptySelectionError: If it names no position.
        AlignmentError: If there are not as many spans as texts.
    """
    if isinstance(position, Spans):
        return _of_spans(position, ids)
    if isinstance(position, str):
        return _of_word(position, ids, bos_id)
    if isinstance(position, Iterable) and not (isinstance(position, Tensor) and not position.ndim):
        asked = indices("position", position)
    else:
        asked = (index("position", position),)
    return Reading(tuple(_within(asked, len(row), ids) for row in ids), None)


def label_of(position: ReadPositions) -> object:
    """A rule as JSON has it: equal for equal rules."""
    if isinstance(position, Spans):
        spans = [list(map(int, span)) for span in position.spans]
        return {"spans": digest(spans), "read": position.read}
    if isinstance(position, str):
        return position
    if isinstance(position, Iterable) and not (isinstance(position, Tensor) and not position.ndim):
        return list(indices("position", position))
    return index("position", position)


def one_per_text(position: ReadPositions) -> ReadPosition:
    """The same rule, if it reads one row of each text whichever the texts.

    Raises:
        OptionError: If it reads several, or other tokens of each text.
    """
    if isinstance(position, str):
        if position in ("last", "first", "mean", "max"):
            return position
        raise OptionError("position", _WORDS, position)
    if isinstance(position, Spans):
        raise OptionError("position", _WORDS, position)
    return index("position", position)


def _of_word(position: str, ids: Ids, bos_id: int | None) -> Reading:
    if position == "first":
        return Reading(tuple((0,) for _ in ids), None)
    if position == "last":
        return Reading(tuple((len(row) - 1,) for row in ids), None)
    if position not in ("all", *_POOLS):
        raise OptionError("position", _SEVERAL, position)
    at = tuple(_content(row, bos_id) for row in ids)
    return Reading(at, _pool_of(position))


def _pool_of(read: str) -> Pool | None:
    return next((pool for pool in _POOLS if pool == read), None)


def _content(row: Sequence[int], bos_id: int | None) -> Sequence[int]:
    """All positions but those of BOS, which carries the attention sink, unless there is no other.

    A range where that is one, since a text may have thousands.
    """
    n_leading = next((i for i, token in enumerate(row) if token != bos_id), 0)
    if bos_id not in row[n_leading:]:
        return range(n_leading, len(row))
    return tuple(i for i, token in enumerate(row) if token != bos_id) or range(len(row))


def _of_spans(spans: Spans, ids: Ids) -> Reading:
    _check_count(len(spans.spans), len(ids))
    if spans.read not in ("first", "last", "all", *_POOLS):
        raise OptionError("read", "'mean', 'max', 'first', 'last' or 'all'", spans.read)
    ends = zip(spans.spans, map(len, ids), strict=True)
    at = tuple(_span(i, span, length) for i, (span, length) in enumerate(ends))
    if spans.read in ("first", "last"):
        at = tuple(inside[:1] if spans.read == "first" else inside[-1:] for inside in at)
    return Reading(at, _pool_of(spans.read))


def _span(text: int, span: tuple[int, int], length: int) -> range:
    start, stop = (index("spans", end) for end in span)
    if not 0 <= start < stop <= length:
        allowed = f"a stretch of the {length} tokens of text {text}"
        raise OptionError("spans", allowed, (start, stop))
    return range(start, stop)


def _within(asked: Sequence[int], length: int, ids: Ids) -> tuple[int, ...]:
    found = tuple(at + length if at < 0 else at for at in asked)
    if not all(0 <= at < length for at in found):
        shown = asked[0] if len(asked) == 1 else list(asked)
        raise OptionError("position", f"within {min(map(len, ids))} tokens", shown)
    return found


def _check_count(spans: int, texts: int) -> None:
    if spans != texts:
        raise AlignmentError(f"{spans} spans for {texts} texts; each text needs one.")
