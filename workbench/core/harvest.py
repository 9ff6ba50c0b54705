"""Activations of many texts, one row each: what probes and directions are made from.

Notable: batches are cut by length and a token budget, the forward ends after the last block that
is asked for, and nothing is unembedded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.data import Batch, batch_of, token_rows
from workbench.core.errors import NonFiniteError, OptionError
from workbench.core.options import count, index
from workbench.core.plan import Interventions, as_plan
from workbench.core.protocols import Model
from workbench.core.run import Check, run
from workbench.core.sites import Selector, Site, select

ReadPosition = Literal["last", "first", "mean"] | int
Progress = Callable[[int, int], None]


@final
@dataclass(frozen=True, eq=False)
class Harvest:
    """One row per text at each site, `(text, d)`, in the order of the texts; heads are flattened.

    `lengths` are the texts' token counts.
    """

    rows: Mapping[Site, Float[Tensor, "text d"]]
    position: ReadPosition
    lengths: tuple[int, ...]


def harvest(  # noqa: PLR0913 - what to read, where, and how it may be watched
    model: Model,
    texts: Sequence[str | Sequence[int]],
    sites: Selector,
    *,
    position: ReadPosition = "last",
    plan: Interventions = (),
    max_tokens: int = 2048,
    progress: Progress | None = None,
    check: Check | None = None,
) -> Harvest:
    """The activation of each text at each site, read at one position.

    `position`: the last or first content token, an absolute one (negative from the end), or the
    mean over all content tokens but the model's BOS, which carries the attention sink. Costs one
    forward per text up to the last block asked for; `max_tokens` bounds a batch.

    Raises:
        UnknownNameError: If the model lacks one of `sites`.
        OptionError: If a text is too short for `position`, or the plan names rows.
        NonFiniteError: If a row is not finite.
    """
    wanted, rows, plan = select(sites, model.sites), token_rows(model, texts), as_plan(plan)
    count("max_tokens", max_tokens)
    if any(one.rows is not None for one in plan):
        raise OptionError("plan", "without rows: texts are batched by length", str(plan[0]))
    store = {site: [torch.empty(0)] * len(rows) for site in wanted}
    done = 0
    for indices in _batches([len(row) for row in rows], max_tokens):
        batch = batch_of(model, [rows[i] for i in indices])
        trace = run(model, batch, plan=plan, record=wanted, logits=False, check=check)
        for site in wanted:
            read = _read(trace[site], batch, position, model, site)
            for i, row in zip(indices, read, strict=True):
                store[site][i] = row
        done += len(indices)
        if progress is not None:
            progress(done, len(rows))
    stacked = {site: torch.stack(parts) for site, parts in store.items()}
    for site, matrix in stacked.items():
        bad = int((~torch.isfinite(matrix)).sum())
        if bad:
            raise NonFiniteError(site, bad, matrix.numel())
    return Harvest(stacked, position, tuple(map(len, rows)))


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of at most `max_tokens` tokens with its pads."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batch: list[int] = []
    for i in order:
        if batch and lengths[i] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _read(
    values: Tensor, batch: Batch, position: ReadPosition, model: Model, site: Site
) -> Float[Tensor, "text d"]:
    if "pos" not in site.axes:
        raise OptionError("sites", "sites with a position axis", str(site))
    flat = values.flatten(2)  # batch pos d
    if position == "mean":
        return _mean(flat, batch, model)
    columns = _columns(position, batch)
    return flat[torch.arange(len(flat), device=flat.device), columns]


def _mean(flat: Float[Tensor, "batch pos d"], batch: Batch, model: Model) -> Tensor:
    real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
    bos = None if model.tokenizer is None else model.tokenizer.bos_id
    counted = real if bos is None else real & (batch.tokens != bos)
    counted = torch.where(counted.any(1, keepdim=True), counted, real)
    weights = counted.to(flat) / counted.sum(1, keepdim=True)
    return torch.einsum("bp,bpd->bd", weights, flat)


def _columns(position: ReadPosition, batch: Batch) -> Tensor:
    if position == "last":
        return batch.last
    if isinstance(position, str) and position != "first":
        raise OptionError("position", "'last', 'first', 'mean' or an index", position)
    at = 0 if position == "first" else index("position", position)
    columns = batch.lengths + at if at < 0 else torch.full_like(batch.lengths, at)
    short = (columns < 0) | (columns >= batch.lengths)
    if bool(short.any()):
        raise OptionError("position", f"within {int(batch.lengths.min())} tokens", position)
    return columns  # harvest pads on the right, so columns are positions
