"""What a selection is in the shape of an activation: tokens, heads, neurons, keys and schedules."""

import torch
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.interventions import Intervention
from workbench.core.sites import Site
from workbench.core.standing import Place, Selection


def scheduled(value: Tensor, new: Tensor, factors: Tensor, site: Site) -> Tensor:
    """The change, as much of it as each token's factor says: 0 is none of it, 1 all, to the bit."""
    weights = _as_axes(factors.to(value.dtype), site, value.ndim)
    kept = (weights == 0) | (new == value)  # where both are a masked -inf, too
    return torch.where(kept, value, torch.lerp(value, new, weights.expand_as(value)))


def mask_of(one: Intervention, tokens: Selection, site: Site, value: Tensor) -> Tensor | None:
    """The selection in the shape of the activation, or None for all of it."""
    parts: list[Tensor] = []
    if isinstance(tokens, Tensor):
        parts.append(_as_axes(tokens, site, value.ndim))
    if one.heads is not None:
        parts.append(_along("head", one.heads, site, value, "heads"))
    if one.neurons is not None:
        width = next((axis for axis in site.axes if axis.startswith("d_")), "neuron")
        parts.append(_along(width, one.neurons, site, value, "neurons"))
    if not parts:
        return None
    mask = parts[0]
    for part in parts[1:]:
        mask = mask & part
    return mask


def _as_axes(tokens: Tensor, site: Site, ndim: int) -> Tensor:
    axis = site.axes.index("pos") if "pos" in site.axes else site.axes.index("query")
    shape = [1] * ndim
    shape[0], shape[axis] = tokens.shape
    return tokens.reshape(shape)


def _along(axis: str, indices: tuple[int, ...], site: Site, value: Tensor, option: str) -> Tensor:
    if axis not in site.axes:
        axes = " ".join(site.axes)
        raise OptionError(f"{option} at {site}", f"left out: its axes are {axes}", indices)
    where = site.axes.index(axis)
    if max(indices) >= value.shape[where]:
        raise OptionError(f"{option} at {site}", f"below {value.shape[where]}", indices)
    mask = torch.zeros(value.shape[where], dtype=torch.bool, device=value.device)
    mask[list(indices)] = True
    return mask.reshape([-1 if i == where else 1 for i in range(value.ndim)])


def key_mask(indices: tuple[int, ...], place: Place, site: Site, value: Tensor) -> Tensor:
    """The columns of these keys: at their own positions, where they are all of this pass.

    Those of earlier passes stand one after another, from each row's first on, or where the pass
    was told that they do.

    Raises:
        OptionError: If the site has no keys.
    """
    if site.axes[-1] != "key":
        axes = " ".join(site.axes)
        raise OptionError(f"keys at {site}", f"left out: its axes are {axes}", indices)
    n_keys, width = value.shape[-1], place.positions.shape[1]
    wanted = torch.tensor(indices, device=value.device)
    if place.keys is not None:
        return torch.isin(place.keys, wanted)[:, None, None]
    if n_keys == width:
        found = torch.isin(place.positions, wanted)
        return (found if place.real is None else found & place.real)[:, None, None]
    columns = torch.arange(width, device=value.device)
    real = torch.ones_like(place.positions, dtype=torch.bool) if place.real is None else place.real
    at = torch.where(real, columns, -1).argmax(1, keepdim=True)  # any token of the row will do
    first = n_keys - width + at - place.positions.gather(1, at)
    keys = torch.arange(n_keys, device=value.device) - first
    return torch.isin(keys, wanted)[:, None, None]
