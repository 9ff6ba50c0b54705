"""What operators are made of and held to: operands that fit a site, and changes like their input.

Notable: an operand that spans positions is read at each token's *absolute* position, so that it
means the same in one full forward, in a decode step and under padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.core.errors import InPlaceEditError, NonFiniteError, ShapeError
from workbench.core.sites import Site
from workbench.core.standing import Place

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def aligned(operand: Tensor, value: Tensor, site: Site, place: Place) -> Tensor:
    """`operand` as it meets `value`: same dtype, its positions read at the tokens' absolute ones.

    Raises:
        ShapeError: If it cannot be broadcast to the activation.
    """
    operand = by_head(operand.to(value), value, site)
    if operand.ndim > value.ndim:
        raise ShapeError(str(site), f"at most {value.ndim} axes", str(operand.ndim))
    axis = _position_axis(site)
    operand = operand[(None,) * (value.ndim - operand.ndim)]
    rows_fit = operand.shape[0] in (1, len(value))
    if rows_fit and axis is not None and operand.shape[axis] > 1:
        operand = _read_positions(operand, axis, site, place)
    if not rows_fit or not _fits(operand, value):
        fitting = f"a tensor that fits {tuple(value.shape)} ({' '.join(site.axes)})"
        raise ShapeError(str(site), fitting, str(tuple(operand.shape)))
    if (
        site.axes[-1] == "key"
        and operand.shape[-1] > 1
        and not keys_are_columns(place, value.shape[-1])
    ):
        unpadded = "one number for all keys, or no pads on the left: keys are columns here"
        raise ShapeError(str(site), unpadded, str(tuple(operand.shape)))
    return operand


def by_head(operand: Tensor, value: Tensor, site: Site) -> Tensor:
    """A vector over all heads of a site, as directions have it, a head at a time."""
    if site.axes[-2] != "head" or not operand.ndim or operand.shape[-1] == value.shape[-1]:
        return operand
    heads = value.shape[-2:]
    return operand.unflatten(-1, heads) if operand.shape[-1] == heads.numel() else operand


def pure(change: Callable[[Tensor], Tensor], value: Tensor, site: Site) -> Tensor:
    """What a foreign function makes of an activation, if it keeps the promise of a tap.

    Raises:
        InPlaceEditError: If it wrote into the activation.
        ShapeError: If it gave anything but a tensor like it.
    """
    before = value._version  # noqa: SLF001 - torch has no public name for it
    new = change(value)
    if value._version != before:  # noqa: SLF001
        raise InPlaceEditError(site)
    check_like(new, value, site)
    return new


def check_like(new: object, value: Tensor, site: Site) -> None:
    """Refuses anything but a tensor of the activation's shape, dtype and device.

    Raises:
        ShapeError: If it is something else.
    """
    expected = f"{tuple(value.shape)} ({' '.join(site.axes)}), {value.dtype}, {value.device}"
    if not isinstance(new, Tensor):
        raise ShapeError(str(site), f"a tensor {expected}", type(new).__name__)
    if (new.shape, new.dtype, new.device) != (value.shape, value.dtype, value.device):
        raise ShapeError(str(site), expected, f"{tuple(new.shape)}, {new.dtype}, {new.device}")


def _position_axis(site: Site) -> int | None:
    for axis in ("pos", "query"):
        if axis in site.axes:
            return site.axes.index(axis)
    return None


def _read_positions(operand: Tensor, axis: int, site: Site, place: Place) -> Tensor:
    if place.from_start and operand.shape[axis] == place.positions.shape[1]:
        return operand
    if place.high >= operand.shape[axis]:
        raise ShapeError(
            str(site), f"an operand of {place.high + 1} positions or more", str(operand.shape[axis])
        )
    rows = operand.expand(place.positions.shape[0], *operand.shape[1:])
    picked = (row.index_select(axis - 1, at) for row, at in zip(rows, place.positions, strict=True))
    return torch.stack(list(picked))


def keys_are_columns(place: Place, n_keys: int) -> bool:
    """Whether key column i is position i in every row."""
    if place.keys is not None:  # which say it themselves
        columns = torch.arange(n_keys, device=place.keys.device)
        return bool(((place.keys == columns) | (place.keys < 0)).all())
    queries = place.positions.shape[1]
    columns = torch.arange(n_keys - queries, n_keys, device=place.positions.device)
    same = place.positions == columns
    return bool((same if place.real is None else same | ~place.real).all())


def _fits(operand: Tensor, value: Tensor) -> bool:
    return all(mine in (1, theirs) for mine, theirs in zip(operand.shape, value.shape, strict=True))


def owned(where: str, value: Tensor, *, masked: bool = False) -> Tensor:
    """A copy of the caller's tensor, which may change it later; of finite numbers, or masked -inf.

    Raises:
        ShapeError: If it is no tensor of floating point numbers.
        NonFiniteError: If one is not finite.
    """
    if not isinstance(value, Tensor) or value.dtype not in FLOATS:
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(where, "a tensor of floating point numbers", got)
    with torch.inference_mode(mode=False):
        own = value.detach().clone()
    kept = own.masked_fill(own == float("-inf"), 0.0) if masked else own
    bad = int((~torch.isfinite(kept)).sum())
    if bad:
        raise NonFiniteError(where, bad, own.numel())
    return own
