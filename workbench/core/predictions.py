"""Batches for a model with a query stream: which tokens it is asked about, and who sees whom.

Notable: such a batch is that of its targets, and knows its source, the text they stand in. What the
query stream of a target sees is not the token that stands there, unless the mask lets it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.core.asked import Asked, Types, asked_of, beside, content_columns
from workbench.core.axes import Segment
from workbench.core.data import Batch, PaddingSide, padded
from workbench.core.errors import AlignmentError, OptionError, ShapeError
from workbench.core.options import indices, iterated
from workbench.core.prompts import Prompt, check_model, open_rows, token_rows

if TYPE_CHECKING:
    from workbench.core.protocols import Model

Targets = int | Sequence[int] | Sequence[Sequence[int]]
DUMMY = 0  # stands where the next token will, and nobody sees it


def target_batch(  # noqa: PLR0913 - all that a batch is made of
    model: "Model",
    prompt: Prompt,
    targets: Targets,
    *,
    perm_mask: Tensor | None = None,
    token_types: Types = None,
    memory: Segment = (),
    answer: Asked = None,
    padding_side: PaddingSide = "right",
) -> Batch:
    """Texts, and the tokens in them that are to be predicted.

    `targets` are content positions, negative ones from a row's end: of all rows, or a list for each
    row. Logits are of these, in their order; so are positions at the sites of the query stream.
    Rows with fewer have pads behind them. `answer` is the target that metrics read; the last, if
    left out.

    `perm_mask` (batch|1 query key, over the padded columns) is 1 where a query may not see a key,
    as transformers has it: a token's content stream sees itself in any case, its query stream only
    if that says so. Left out, nobody sees a target. A query that is left with no key to see reads
    all of them alike, itself too, as the model was written.

    Raises:
        PromptError: If a prompt is empty or has ids outside the vocabulary.
        OptionError: If the model has no query stream, a target is outside its row, or the mask is
            none.
        ShapeError: If the mask, memory or token types do not fit.
        AlignmentError: If there are neither targets for all rows nor for each.
    """
    check_model(model)
    if not model.sizes.predicts:
        raise OptionError("model", "with a query stream, as `model.predicting`", model.name)
    if padding_side not in ("left", "right"):
        raise OptionError("padding_side", "'left' or 'right'", padding_side)
    source = padded(model, token_rows(model, prompt), padding_side, None)
    source = beside(model, asked_of(model, source, token_types, None), memory)
    columns, real = _targets(source, targets)
    if perm_mask is None:
        hidden = _hiding(source, columns)
    else:
        hidden = _permuted(perm_mask.to(columns.device), *source.tokens.shape)
    return asked_of(model, _asking(source, columns, real, hidden), None, answer)


def next_batch(
    model: "Model",
    prompt: Prompt,
    *,
    token_types: Types = None,
    memory: Segment = (),
    padding_side: PaddingSide = "right",
) -> Batch:
    """Texts, and the token after each: behind it stands one more, which nobody sees.

    A text has no special tokens around it: it goes on. It is read both ways. The token that stands
    in for the next has the type of the last one.

    Raises:
        PromptError: If a prompt is empty or has ids outside the vocabulary.
        OptionError: If the model has no query stream.
        ShapeError: If the memory or token types do not fit.
    """
    rows = [(*row, DUMMY) for row in open_rows(model, prompt)]
    if token_types is not None:
        text = padded(model, [row[:-1] for row in rows], "right", None)
        plain = asked_of(model, text, token_types, None)
        assert plain.types is not None  # they were given
        lengths = zip(plain.types.tolist(), plain.lengths.tolist(), strict=True)
        token_types = [[*row[:length], row[length - 1]] for row, length in lengths]
    return target_batch(
        model, rows, -1, token_types=token_types, memory=memory, padding_side=padding_side
    )


def following(model: "Model", text: Batch) -> Batch:
    """The token after each row of a batch of plain text: what generation asks for.

    At the sites of the query stream it is of no prompt, as it will be generated.
    """
    pad = torch.nn.functional.pad
    real = torch.ones_like(text.tokens, dtype=torch.bool) if text.real is None else text.real
    end = text.last[:, None] + 1
    tokens = pad(text.tokens, (0, 1)).scatter(1, end, DUMMY)
    real = pad(real, (0, 1), value=False).scatter(1, end, value=True)
    source = replace(text, tokens=tokens, real=None if bool(real.all()) else real)
    source, all_real = beside(model, source, ()), torch.ones_like(end, dtype=torch.bool)
    made = _asking(source, end, all_real, _hiding(source, end))
    return replace(made, prompt=torch.zeros_like(made.prompt))


def _asking(
    source: Batch,
    columns: Int[Tensor, "batch target"],
    real: Bool[Tensor, "batch target"],
    hidden: Bool[Tensor, "_ query key"],
) -> Batch:
    """The batch of some targets, from what nobody sees."""
    return Batch(
        source.tokens.gather(1, columns),
        None if bool(real.all()) else real,
        torch.zeros_like(source.start),
        real.sum(1),
        source=replace(source, seen=~hidden[:, None]),
        targets=columns,
    )


def _targets(
    source: Batch, targets: Targets
) -> tuple[Int[Tensor, "batch target"], Bool[Tensor, "batch target"]]:
    """The columns of each row's targets, and which of them are no pads.

    Raises:
        AlignmentError: If there are neither targets for all rows nor for each.
    """
    count = len(source.tokens)
    given = (targets,) if isinstance(targets, int) else tuple(iterated("targets", targets))
    nested = bool(given) and not isinstance(given[0], int)
    rows = [indices("targets", row) for row in given] if nested else [indices("targets", given)]
    if len(rows) not in (1, count):
        raise AlignmentError(f"{count} prompts need 1 or {count} lists of targets, got {len(rows)}")
    rows = rows * count if len(rows) == 1 else rows
    widest = max(map(len, rows))
    filled = torch.tensor([[*row, *row[:1] * (widest - len(row))] for row in rows])
    real = torch.arange(widest) < torch.tensor([[len(row)] for row in rows])
    device = source.tokens.device
    return content_columns(source, filled.to(device)), real.to(device)


def _hiding(source: Batch, columns: Int[Tensor, "batch target"]) -> Bool[Tensor, "batch query key"]:
    """Every target from every query."""
    hidden = torch.zeros_like(source.tokens, dtype=torch.bool)
    hidden = hidden.scatter(1, columns, value=True)  # pads repeat a row's first target
    return hidden[:, None].expand(-1, source.tokens.shape[1], -1)


def _permuted(mask: Tensor, rows: int, width: int) -> Bool[Tensor, "_ query key"]:
    if mask.ndim != 3 or mask.shape[0] not in (1, rows) or mask.shape[1:] != (width, width):
        wanted = f"({rows} or 1, {width}, {width}) (batch query key)"
        raise ShapeError("perm_mask", wanted, str(tuple(mask.shape)))
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise OptionError("perm_mask", "made of zeros and ones", mask.unique().tolist())
    return mask == 1
