"""Texts to rows of tokens, as language models are trained on them.

Notable: 2.x adds a pad token to the tokenizer it is given, puts special tokens where it cuts the
text, and loses separators where the pad token is the end of a text; here texts are tokenised one
by one, nothing is set on the tokenizer, and every text is followed by one end.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from workbench.compat.transformer_lens.slices import Array
from workbench.core.errors import OptionError
from workbench.core.options import count

Columns = Mapping[str, Any]


@runtime_checkable
class TextDataset(Protocol):
    """What is asked of a data set: the interface of Hugging Face's `datasets`."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Its columns."""
        ...

    def remove_columns(self, column_names: str) -> "TextDataset":
        """The same without a column."""
        ...

    def map(
        self,
        function: Callable[[Columns], Columns],
        *,
        batched: bool,
        num_proc: int | None,
        remove_columns: list[str],
    ) -> "TextDataset":
        """The same with a function applied to batches of rows."""
        ...

    def set_format(self, *, type: str, columns: list[str]) -> None:  # noqa: A002
        """Has columns read as tensors."""
        ...


@runtime_checkable
class EncoderView(Protocol):
    """What is asked of a tokenizer."""

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text."""
        ...

    @property
    def pad_token_id(self) -> int | None:
        """The id that pads."""
        ...

    def __call__(
        self, text: list[str], *, add_special_tokens: bool, verbose: bool
    ) -> Mapping[str, Any]:
        """Ids of texts, under `input_ids`."""
        ...


def keep_single_column(dataset: TextDataset, col_name: str) -> TextDataset:
    """The data set with one of its columns only."""
    for name in list(dataset.features):
        if name != col_name:
            dataset = dataset.remove_columns(name)
    return dataset


def tokenize_and_concatenate(  # noqa: PLR0913 - the classic signature
    dataset: TextDataset,
    tokenizer: EncoderView,
    streaming: bool = False,  # noqa: FBT001, FBT002
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,  # noqa: FBT001, FBT002
    num_proc: int = 10,
) -> TextDataset:
    """A data set of `tokens`: the texts, an end after each but the last, cut into equal rows.

    Each row begins with the beginning-of-text token if `add_bos_token`. What is left over after
    the last full row of a batch of texts is dropped; a batch of less than one row is padded.

    Raises:
        OptionError: If the tokenizer lacks a token that is needed, or a row would be empty.
    """
    ends, begins = tokenizer.eos_token_id, tokenizer.bos_token_id
    if ends is None or (add_bos_token and begins is None):
        raise OptionError("tokenizer", "one with an end (and a beginning) of text", tokenizer)
    pad = ends if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    width = count("max_length", max_length, least=1 + int(add_bos_token)) - int(add_bos_token)

    def rows_of(texts: Columns) -> Columns:
        encoded = tokenizer(list(texts[column_name]), add_special_tokens=False, verbose=False)
        rows = _rows(encoded["input_ids"], ends, pad, width)
        first = np.full((len(rows), int(add_bos_token)), begins or 0)
        return {"tokens": np.concatenate([first, rows], 1)}

    made = keep_single_column(dataset, column_name).map(
        rows_of,
        batched=True,
        num_proc=None if streaming else num_proc,
        remove_columns=[column_name],
    )
    made.set_format(type="torch", columns=["tokens"])
    return made


def _rows(encoded: Iterable[Sequence[int]], ends: int, pad: int, width: int) -> Array:
    """Full rows of the texts with an end between them, or one padded row if they are too short."""
    ids: list[int] = []
    for text in encoded:
        ids += [*text, ends]
    ids = ids[:-1]
    if not ids:
        return np.zeros((0, width), dtype=np.int64)
    full = max(1, len(ids) // width) * width
    ids = ids[:full] + [pad] * (full - len(ids))
    return np.array(ids, dtype=np.int64).reshape(-1, width)
