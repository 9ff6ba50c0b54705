"""Rows of a run in batches of similar length: few pads, and the memory of one batch at a time.

    batches     the rows, cut by length under a budget of tokens
    buckets_of  the part of a run that each batch is

Notable: a batch is its rows' tokens alone, so it knows nothing of the columns of the whole batch;
`Bucket.columns` says where each token stands there. Positions are absolute, so a plan means the
same in every batch; only its rows, and operands with a row for each, are cut.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import Resid
from workbench.core.data import Batch
from workbench.core.errors import OptionError, ShapeError
from workbench.core.interventions import Intervention
from workbench.core.operands import by_head, keys_are_columns
from workbench.core.operators import Activation, Operator, Scalars, Tensors, operator_from
from workbench.core.options import count
from workbench.core.plan import Plan
from workbench.core.program import compile_plan
from workbench.core.protocols import Model
from workbench.core.request import Request
from workbench.core.seen import Seen
from workbench.core.sites import Site, select
from workbench.core.standing import Place

PADS = 32  # of a batch's tokens, one may be a pad
OPERAND = "operand"


def batches(lengths: Sequence[int], texts: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Texts in batches of similar length, each of at most `max_tokens` tokens with its pads.

    A batch also ends before its pads exceed a 32nd of that: another forward costs less than many
    pads. A text that is longer on its own is a batch on its own.
    """
    batch: list[int] = []
    tokens = 0
    for text in sorted(texts, key=lambda i: lengths[i]):
        padded = lengths[text] * (len(batch) + 1)
        pads = padded - tokens - lengths[text]
        if batch and (padded > max_tokens or pads > max_tokens // PADS):
            yield batch
            batch, tokens = [], 0
        batch.append(text)
        tokens += lengths[text]
    if batch:
        yield batch


@final
@dataclass(frozen=True, eq=False)
class Bucket:
    """Some rows of a batch as a batch of their own, padded on the right."""

    rows: tuple[int, ...]  # of the whole batch
    columns: Int[Tensor, "row pos"]  # of the whole batch: where the tokens of this one stand
    batch: Batch


@final
@dataclass(frozen=True, eq=False)
class Part:
    """One bucket's part of a run; `indices` are its interventions' places in the whole plan."""

    bucket: Bucket
    asked: Request
    indices: tuple[int, ...]


def buckets_of(asked: Request, max_tokens: int, *, own: bool) -> tuple[Part, ...]:
    """A run in batches of at most `max_tokens` tokens; `own` says that the caller has a tap.

    Raises:
        OptionError: If it is no count, or something that may look at the whole batch cannot.
    """
    budget = count("max_tokens", max_tokens)
    if asked.batch.source is not None:
        raise OptionError("max_tokens", "left out: sources and targets differ in length", budget)
    if own or not asked.program.plan.replayable:
        which = "a bare function" if not own else "a tap of your own"
        raise OptionError("max_tokens", f"left out with {which}, which is to see all rows", budget)
    lengths = asked.batch.lengths.tolist()
    found = batches(lengths, range(len(lengths)), budget)
    return tuple(_part(asked, bucket_of(asked.batch, rows)) for rows in found)


def bucket_of(batch: Batch, rows: Sequence[int]) -> Bucket:
    """Some rows of a batch, their tokens moved together."""
    at = torch.tensor(rows, device=batch.tokens.device)
    lengths = batch.lengths[at]
    width = max(int(lengths.max()), 1)
    steps = torch.arange(width, device=at.device)
    columns = steps.expand(len(rows), -1)
    if batch.real is not None:  # the columns of the tokens in their order, then those of pads
        order = batch.real[at].int().argsort(dim=1, descending=True, stable=True)
        columns = order[:, :width].contiguous()
    real = steps < lengths[:, None]
    own = Batch(
        batch.tokens[at].gather(1, columns),
        None if bool(real.all()) else real,
        batch.start[at],
        batch.prompt[at],
        None if batch.said is None else batch.said[at],
        _seen(batch, rows, columns),
        types=None if batch.types is None else batch.types[at].gather(1, columns),
        asked=None if batch.asked is None else _asked(batch.asked[at], columns),
        memory=tuple(stream[at] for stream in batch.memory),
        backward=None if batch.backward is None else batch.backward[at],
    )
    return Bucket(tuple(rows), columns, own)


def _seen(batch: Batch, rows: Sequence[int], columns: Tensor) -> Seen | None:
    """Who may see whom among the columns of a bucket, row by row."""
    if batch.seen is None:
        return None
    own = batch.seen.expand(len(batch.tokens), -1, -1, -1)[list(rows)]
    groups = own.shape[1]
    queries = columns[:, None, :, None].expand(-1, groups, -1, own.shape[3])
    keys = columns[:, None, None, :].expand(-1, groups, columns.shape[1], -1)
    return own.gather(2, queries).gather(3, keys)


def _asked(asked: Int[Tensor, " row"], columns: Int[Tensor, "row pos"]) -> Int[Tensor, " row"]:
    """Where the columns asked about are in the bucket's own rows; -1 stays."""
    hit = columns == asked[:, None]
    return torch.where(hit.any(1), hit.int().argmax(1), asked.new_full((), -1))


def _part(asked: Request, bucket: Bucket) -> Part:
    plan, indices = plan_of_bucket(asked.program.plan, asked.batch, bucket, asked.model)
    given = None if asked.given is None else _gathered(asked.given, bucket)
    own = replace(
        asked,
        batch=bucket.batch,
        program=compile_plan(plan, asked.model, len(bucket.rows)),
        given=given,
        columns=_columns(asked, bucket),
    )
    return Part(bucket, own, indices)


def _gathered(resid: Resid, bucket: Bucket) -> Float[Tensor, "row column d_model"]:
    at = bucket.columns[:, :, None].expand(-1, -1, resid.shape[-1])
    return resid[list(bucket.rows)].gather(1, at)


def _columns(asked: Request, bucket: Bucket) -> Int[Tensor, "row column"] | None:
    """Where the columns asked for are in the bucket's own rows."""
    if asked.columns is None:
        return None
    columns, real = asked.columns[list(bucket.rows)], asked.batch.real
    return columns if real is None else (real[list(bucket.rows)].cumsum(1) - 1).gather(1, columns)


def plan_of_bucket(
    plan: Plan, batch: Batch, bucket: Bucket, model: Model
) -> tuple[Plan, tuple[int, ...]]:
    """The interventions that meet these rows, and their places in the whole plan."""
    mine = [
        (index, _cut(one, batch, bucket, model))
        for index, one in enumerate(plan)
        if one.rows is None or set(one.rows) & set(bucket.rows)
    ]
    return Plan(tuple(one for _, one in mine)), tuple(index for index, _ in mine)


def _cut(one: Intervention, batch: Batch, bucket: Bucket, model: Model) -> Intervention:
    """An intervention on the rows of a bucket."""
    own = {row: place for place, row in enumerate(bucket.rows)}
    named = range(len(batch.tokens)) if one.rows is None else one.rows
    kept = bucket.rows if one.rows is None else [row for row in one.rows if row in own]
    if one.rows is not None:
        one = one.on_rows([own[row] for row in kept])
    if not _spans(one, model):
        return one
    order = {row: place for place, row in enumerate(named)}
    part = PartOperator(one.operator, tuple(order[row] for row in kept), len(named), batch.place)
    return one.by(part)


def _spans(one: Intervention, model: Model) -> bool:
    """Whether its operand may have an entry for each row, or each column.

    Raises:
        OptionError: If it cannot be told.
    """
    tensors = one.operator.tensors()
    if any(tensor.ndim > 2 for name, tensor in tensors.items() if name != OPERAND):
        raise OptionError("max_tokens", "left out: its tensors may be of single rows", str(one))
    keyed = any(site.axes[-1] == "key" for site in select(one.sites, model.sites))
    return OPERAND in tensors and tensors[OPERAND].ndim > (0 if keyed else 2)


@final
@dataclass(frozen=True, eq=False, repr=False)
class PartOperator(Operator):
    """Another operator, made for a whole batch, on some of its rows."""

    whole: Operator
    rows: tuple[int, ...]  # of those the operator was made for, ...
    n_rows: int  # ... which are so many
    place: Place  # of the whole batch
    name: ClassVar[str] = "part"

    @override
    def __call__(self, value: Activation, site: Site, place: Place, strength: float) -> Activation:
        tensors = dict(self.whole.tensors())
        tensors[OPERAND] = self._cut(tensors[OPERAND], value, site)
        own = operator_from(self.whole.name, self.whole.scalars(), tensors)
        return own(value, site, place, strength)

    @override
    def scalars(self) -> Scalars:
        return self.whole.scalars()

    @override
    def tensors(self) -> Tensors:
        return self.whole.tensors()

    def _cut(self, operand: Tensor, value: Tensor, site: Site) -> Tensor:
        operand = by_head(operand, value, site)
        if operand.ndim == value.ndim and len(operand) > 1:
            if len(operand) != self.n_rows:
                raise ShapeError(str(site), f"1 or {self.n_rows} rows", str(tuple(operand.shape)))
            operand = operand[list(self.rows)]
        if site.axes[-1] != "key" or not operand.ndim or operand.shape[-1] == 1:
            return operand
        width = self.place.positions.shape[1]
        if operand.shape[-1] != width or not keys_are_columns(self.place, width):
            fitting = f"one number for all keys, or {width} and no pads on the left"
            raise ShapeError(str(site), fitting, str(tuple(operand.shape)))
        return operand[..., : value.shape[-1]]
