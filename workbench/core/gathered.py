"""What the batches of one run left, read as if it had been one batch.

Notable: nothing but tokens is kept, so a trace of ragged texts is smaller than its padded tensors;
each is put together when it is read. A pad is 0 in all of them, and a masked score -inf: what a
batch computed at its own pads is dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workbench.core.axes import SCORES
from workbench.core.buckets import Bucket
from workbench.core.data import Batch
from workbench.core.modes import outside_inference
from workbench.core.replay import Left
from workbench.core.sites import Site, Sites

LOGITS = ("batch", "pos", "d_vocab")


@final
@dataclass(frozen=True, eq=False)
class Gathered:
    """The activations of a run's batches, which are read together; meets `Source`."""

    sites: Sites
    batch: Batch
    buckets: tuple[Bucket, ...]
    parts: tuple[Left, ...]

    def read(self, sites: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
        """The activations at `sites`, in forward order, each a new tensor."""
        streams = [part.read(sites) for part in self.parts]
        for site in sites:
            yield site, together(site, self.batch, self.buckets, [next(one)[1] for one in streams])


@outside_inference
def together(
    site: Site, batch: Batch, buckets: Sequence[Bucket], values: Sequence[Tensor]
) -> Tensor:
    """The activation of all rows, from those of each bucket."""
    rows, width = batch.tokens.shape
    like = values[0]
    sizes = [
        {"batch": rows, "pos": width, "query": width, "key": width}.get(axis, size)
        for axis, size in zip(site.axes, like.shape, strict=True)
    ]
    whole = like.new_full(sizes, float("-inf") if site.short in SCORES else 0.0)
    for bucket, value in zip(buckets, values, strict=True):
        put(whole, value, bucket, site.axes)
    return whole


def put(whole: Tensor, value: Tensor, bucket: Bucket, axes: Sequence[str]) -> None:
    """Writes a bucket's tokens, without its pads, into its rows of a tensor of all rows."""
    rows = torch.tensor(bucket.rows, device=whole.device)
    if axes[-1] == "key":
        _put_squares(whole, value, bucket)
    elif "pos" not in axes:
        whole[rows] = value
    elif bucket.batch.real is None:
        whole[rows[:, None].expand_as(bucket.columns), bucket.columns] = value
    else:  # row by row: a copy without the pads could be as large as the logits
        for place, (row, length) in enumerate(_lengths(bucket)):
            whole[row, bucket.columns[place, :length]] = value[place, :length]


def _put_squares(whole: Tensor, value: Tensor, bucket: Bucket) -> None:
    for place, (row, length) in enumerate(_lengths(bucket)):
        columns, square = bucket.columns[place, :length], whole[row]  # head query key
        square[:, columns[:, None], columns] = value[place, :, :length, :length]


def _lengths(bucket: Bucket) -> Iterator[tuple[int, int]]:
    """The rows of the whole batch, and how many tokens each has."""
    return zip(bucket.rows, bucket.batch.lengths.tolist(), strict=True)
