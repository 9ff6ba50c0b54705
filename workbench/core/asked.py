"""What a batch is asked about: the position that metrics read, token types, and the answers.

Notable: where a model reads both ways, its answer stands where the question is: at the one masked
token, or at the first token of a text that is classified.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.core.axes import Segment
from workbench.core.errors import AlignmentError, OptionError, PromptError, ShapeError
from workbench.core.options import index, indices, iterated

if TYPE_CHECKING:
    from workbench.core.data import Batch
    from workbench.core.protocols import Model

Types = Sequence[int] | Sequence[Sequence[int]] | Int[Tensor, "..."] | None
Asked = int | Sequence[int] | None
Answer = str | int | Sequence[str] | Sequence[int]


def asked_of(model: "Model", batch: "Batch", types: Types, answer: Asked) -> "Batch":
    """The batch with its tokens' types, and with what is asked about.

    Raises:
        OptionError: If the model knows no types, or a position is outside a row.
        ShapeError: If the types are not one for each token.
    """
    if types is not None:
        batch = replace(batch, types=_types(model, batch, types))
    columns = _columns(model, batch) if answer is None else _given(batch, answer)
    return batch if columns is None else replace(batch, asked=columns)


def beside(model: "Model", batch: "Batch", memory: Segment) -> "Batch":
    """The batch with the memory of an earlier segment, and with which rows run backwards.

    Raises:
        OptionError: If the model has no memory, or halves of rows and an odd number of them.
        ShapeError: If the memory is not one stream before each block, of the batch's rows.
    """
    streams = model.sizes.streams
    if memory:
        _check_memory(model, batch, memory)
        batch = replace(batch, memory=tuple(stream.to(model.device) for stream in memory))
    if streams is None or not streams.halves:
        return batch
    rows = len(batch.tokens)
    if rows % 2:
        raise OptionError("prompt", "an even number: the second half is read backwards", rows)
    half = torch.arange(rows, device=batch.tokens.device) >= rows // 2
    return replace(batch, backward=half)


def _check_memory(model: "Model", batch: "Batch", memory: Segment) -> None:
    sizes, rows = model.sizes, len(batch.tokens)
    if sizes.streams is None:
        raise OptionError("memory", f"left out: {model.name} has none", f"{len(memory)} streams")
    shapes = [tuple(stream.shape) for stream in memory]
    expected = (rows, shapes[0][1], sizes.d_model)
    if shapes != [expected] * sizes.n_layers:
        wanted = f"{sizes.n_layers} streams of {rows} rows (batch memory d_model {sizes.d_model})"
        raise ShapeError("memory", wanted, str(shapes))


def answer_ids(model: "Model", answer: Answer, count: int) -> tuple[int, ...]:
    """The token of each of `count` examples; a single answer serves them all.

    Raises:
        TokenError: If a text is not one token.
        AlignmentError: If there are neither one nor `count`.
    """
    ids = _answers(model, answer)
    if len(ids) == 1:
        return ids * count
    if len(ids) != count:
        raise AlignmentError(f"{count} examples need 1 or {count} answers, got {len(ids)}.")
    return ids


def _answers(model: "Model", answer: Answer) -> tuple[int, ...]:
    single = isinstance(answer, str | int)
    parts = (answer,) if single else tuple(iterated("target and foil", answer))
    return tuple(_answer(model, part) for part in parts)


def _answer(model: "Model", answer: str | int) -> int:
    if model.sizes.output.columns != "vocabulary":
        return labelled(model, answer)
    if not isinstance(answer, str):
        answer = index("target and foil", answer)
        if not 0 <= answer < model.sizes.d_out:
            raise PromptError(f"Token id {answer} is outside 0…{model.sizes.d_out - 1}.")
        return answer
    if model.tokenizer is None:
        raise PromptError(f"{model.name} has no tokenizer: give target and foil as token ids.")
    return model.tokenizer.single(answer)


def labelled(model: "Model", answer: str | int) -> int:
    """The column of a classifier's label, by its name or number.

    Raises:
        OptionError: If there is no such label, or the model has no head that says anything.
    """
    labels = model.sizes.output.labels
    if not labels:
        allowed = f"left out: {model.name} has no head. Use a function of its stream as a metric"
        raise OptionError("target and foil", allowed, answer)
    found = answer if isinstance(answer, int) else {n: i for i, n in enumerate(labels)}.get(answer)
    if found is None or not 0 <= found < len(labels):
        raise OptionError("target and foil", f"of the labels {', '.join(labels)}", answer)
    return found


def content_columns(
    batch: "Batch", positions: Int[Tensor, "batch asked"]
) -> Int[Tensor, "batch asked"]:
    """The columns of content positions, negative ones counted from each row's end.

    Raises:
        OptionError: If a row has no such position.
    """
    lengths = batch.lengths[:, None]
    absolute = torch.where(positions < 0, lengths + positions, positions)
    if bool(((absolute < 0) | (absolute >= lengths)).any()):
        raise OptionError("positions", f"below {int(lengths.min())}", positions.tolist())
    here = batch.positions[:, None] == absolute[:, :, None]  # batch asked pos
    if batch.real is not None:  # pads may stand anywhere, and have their neighbour's position
        here = here & batch.real[:, None]
    return here.int().argmax(2)


def _given(batch: "Batch", answer: int | Sequence[int]) -> Int[Tensor, " batch"]:
    asked = indices("answer", answer)
    rows = len(batch.tokens)
    if len(asked) not in (1, rows):
        raise OptionError("answer", f"one position, or one for each of {rows} rows", list(asked))
    at = torch.tensor(asked, device=batch.tokens.device).expand(rows)
    return content_columns(batch, at[:, None])[:, 0]


def _columns(model: "Model", batch: "Batch") -> Int[Tensor, " batch"] | None:
    """Where a model of this kind answers; -1 where that cannot be told; None: at the last token."""
    from workbench.core.protocols import Masking  # which builds on batches

    kind = model.sizes.output.answer
    if kind == "last":
        return None
    zeros = torch.zeros_like(batch.start)
    if kind == "first":
        return content_columns(batch, zeros[:, None])[:, 0]
    vocabulary = model.tokenizer
    mask = vocabulary.mask_id if isinstance(vocabulary, Masking) else None
    if kind == "asked" or mask is None:
        return zeros - 1
    masked = batch.tokens == mask
    masked = masked if batch.real is None else masked & batch.real
    return torch.where(masked.sum(1) == 1, masked.int().argmax(1), zeros - 1)


def knows_types(model: "Model") -> bool:
    """Whether its embedding, or its attention, reads the types of tokens."""
    embedded = any(str(site) == "hook_token_type_embed" for site in model.sites)
    return embedded or model.sizes.streams is not None


def _types(model: "Model", batch: "Batch", types: Types) -> Int[Tensor, "batch pos"]:
    """Types by column; pads have type 0.

    Raises:
        OptionError: If the model knows no types, or one is below 0.
        ShapeError: If they are not one for each token.
    """
    if not knows_types(model):
        raise OptionError("token_types", f"left out: {model.name} knows none", types)
    nested = torch.as_tensor(types).tolist() if isinstance(types, Tensor) else list(types or ())
    rows = nested if nested and isinstance(nested[0], Sequence) else [nested]
    lengths = batch.lengths.tolist()
    found = [indices("token_types", row) for row in rows]
    if [len(row) for row in found] != lengths:
        raise ShapeError("token_types", f"rows of {lengths}, one for each token", f"{rows}")
    if min(map(min, found)) < 0:
        raise OptionError("token_types", "0 or above", min(map(min, found)))
    made = torch.zeros_like(batch.tokens)
    flat = torch.tensor([kind for row in found for kind in row], device=made.device)
    real = torch.ones_like(made, dtype=torch.bool) if batch.real is None else batch.real
    made[real] = flat
    return made
