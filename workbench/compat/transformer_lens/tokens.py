"""Text to tokens and back by the classic rules, over a vocabulary that nobody changes.

Notable: the beginning-of-text token is put before a text by default, whether or not the model was
trained with one; padding and truncation are done here, by arguments, so that threads may pad on
different sides at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.core.errors import OptionError, PromptError, ShapeError, TokenError
from workbench.core.options import index
from workbench.core.protocols import Vocabulary
from workbench.models.tokenizer import Tokenizer

PaddingSide = Literal["left", "right"]
Ids = Int[Tensor, "batch pos"]


@final
@dataclass(frozen=True, eq=False)
class Padded:
    """Rows of ids as one tensor; `real` is None where nothing is padded."""

    ids: Ids
    real: Bool[Tensor, "batch pos"] | None


@final
@dataclass(frozen=True, eq=False)
class Texts:
    """A vocabulary with the classic defaults: what stands before a text, what fills a row up."""

    vocabulary: Vocabulary
    n_ctx: int
    prepend_bos: bool = True
    padding_side: PaddingSide = "right"

    @property
    def bos(self) -> int | None:
        """What is put before a text; the end token where the vocabulary has no other."""
        found = self.vocabulary.bos_id
        return next(iter(self.vocabulary.eos_ids), None) if found is None else found

    @property
    def pad(self) -> int:
        """What rows are filled up with; the end token where there is no other."""
        own = self.vocabulary.pad_id if isinstance(self.vocabulary, Tokenizer) else None
        return next(iter(self.vocabulary.eos_ids), 0) if own is None else own

    @property
    def prepends_bos(self) -> bool:
        """Whether the vocabulary puts something before every text by itself."""
        return len(self.vocabulary.encode("")) > 0

    def given(  # the classic's own arguments
        self,
        prepend_bos: bool | None,  # noqa: FBT001
        padding_side: PaddingSide | None,
    ) -> "Texts":
        """The same with a call's own arguments; None leaves the default.

        Raises:
            OptionError: If the side is none.
        """
        side = self.padding_side if padding_side is None else padding_side
        if side not in ("left", "right"):
            raise OptionError("padding_side", "'left' or 'right'", side)
        before = self.prepend_bos if prepend_bos is None else prepend_bos
        return replace(self, prepend_bos=before, padding_side=side)

    def rows(self, text: str | Sequence[str], *, truncate: bool = True) -> list[tuple[int, ...]]:
        """The ids of each text.

        Raises:
            PromptError: If something is no text.
        """
        parts = [text] if isinstance(text, str) else list(text)
        strange = [part for part in parts if not isinstance(part, str)]
        if strange:
            raise PromptError(f"A list of texts holds {type(strange[0]).__name__}.")
        rows = [self._encoded(part) for part in parts]
        return [row[: self.n_ctx] for row in rows] if truncate else rows

    def padded(self, rows: Sequence[Sequence[int]], device: torch.device) -> Padded:
        """Rows filled up on one side.

        Raises:
            PromptError: If there is no row.
        """
        if not rows:
            raise PromptError("There is no text; pass one, or a list of at least one.")
        longest = max(map(len, rows))
        left = self.padding_side == "left"
        filled = [
            [self.pad] * (longest - len(row)) + list(row)
            if left
            else list(row) + [self.pad] * (longest - len(row))
            for row in rows
        ]
        lengths = torch.tensor([[len(row)] for row in rows], device=device)
        columns = torch.arange(longest, device=device)
        real = columns >= longest - lengths if left else columns < lengths
        ids = torch.tensor(filled, dtype=torch.long, device=device).reshape(len(rows), longest)
        return Padded(ids, None if bool(real.all()) else real)

    def mask(self, ids: Ids) -> Bool[Tensor, "batch pos"]:
        """Which ids are real: pads that lead (left) or trail (right) are not.

        Where the pad is also the beginning token, and one is prepended, the last of them is real.
        """
        left = self.padding_side == "left"
        pads = ids == self.pad
        pads = pads if left else pads.flip(1)
        run = pads.int().cumprod(1).bool()
        real = ~run if left else ~run.flip(1)
        if left and self.prepend_bos and self.bos == self.pad:
            counts = run.sum(1)
            rows = torch.arange(len(ids), device=ids.device)[counts > 0]
            real[rows, counts[counts > 0] - 1] = True
        return real

    def text(self, ids: Any) -> str | list[str]:
        """The text of ids, or of each row of them.

        Raises:
            ShapeError: If they have more than two axes.
        """
        rows = _as_tensor(ids)
        if rows.ndim > 2:
            raise ShapeError("tokens", "(pos) or (batch pos)", str(tuple(rows.shape)))
        if rows.ndim == 2:
            return [self.vocabulary.decode(row) for row in rows.tolist()]
        return self.vocabulary.decode(rows.reshape(-1).tolist())

    def pieces(self, given: Any, device: torch.device) -> list[str] | list[list[str]]:
        """Each token as a text of its own, of a text, of ids, or of each of a list of either.

        Raises:
            ShapeError: If ids have several rows.
        """
        if isinstance(given, list) and not _is_row(given):
            return [_flat(self.pieces(part, device)) for part in given]
        ids = self.rows(given)[0] if isinstance(given, str) else _one_row(given)
        return [self.vocabulary.decode([token]) for token in ids]

    def single(self, text: str) -> int:
        """The id of a text that is one token, with nothing before it.

        Raises:
            TokenError: If it is none or several.
        """
        ids = replace(self, prepend_bos=False).rows(text)[0]
        if len(ids) != 1:
            raise TokenError(text, map(self.vocabulary.token_text, ids))
        return ids[0]

    def position(self, token: str | int | Tensor, given: Any, mode: str) -> int:
        """Where a token stands first or last.

        Raises:
            OptionError: If the mode is neither.
            TokenError: If it does not occur.
        """
        if mode not in ("first", "last"):
            raise OptionError("mode", "'first' or 'last'", mode)
        ids = self.rows(given)[0] if isinstance(given, str) else _one_row(given)
        wanted = self.single(token) if isinstance(token, str) else index("single_token", token)
        places = [place for place, one in enumerate(ids) if one == wanted]
        if not places:
            text = self.vocabulary.token_text(wanted)
            raise TokenError(f"{text} (which is not in the prompt)", [])
        return places[0] if mode == "first" else places[-1]

    def _encoded(self, text: str) -> tuple[int, ...]:
        automatic, bos = self.prepends_bos, self.bos
        if not self.prepend_bos:
            ids = self.vocabulary.encode(text)
            return ids[1:] if automatic and ids[:1] == (bos,) else ids
        if automatic or bos is None:
            return self.vocabulary.encode(text)
        if isinstance(self.vocabulary, Tokenizer):  # as the classic: the text of it, then tokenised
            return self.vocabulary.encode(f"{self._bos_text(self.vocabulary)}{text}")
        return (bos, *self.vocabulary.encode(text))

    def _bos_text(self, tokenizer: Tokenizer) -> str:
        return tokenizer.named.get("bos_token") or tokenizer.named.get("eos_token", "")


def _is_row(given: list[Any]) -> bool:
    return len(given) > 0 and all(isinstance(part, int | np.integer) for part in given)


def _as_tensor(ids: Any) -> Tensor:
    if isinstance(ids, list) and ids and isinstance(ids[0], Tensor):
        return torch.stack(ids)
    return ids if isinstance(ids, Tensor) else torch.as_tensor(np.asarray(ids))


def _one_row(ids: Any) -> tuple[int, ...]:
    row = _as_tensor(ids).squeeze()
    if row.ndim > 1:
        raise ShapeError("tokens", "(pos) or (1 pos)", str(tuple(row.shape)))
    return tuple(map(int, row.reshape(-1).tolist()))


def _flat(pieces: list[str] | list[list[str]]) -> list[str]:
    return [piece for piece in pieces if isinstance(piece, str)]
