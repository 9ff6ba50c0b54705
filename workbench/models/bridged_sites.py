"""Which hook of a bridge is which of our sites, and how its tensors read with our axes.

Notable: names are a table, but nothing is believed because of a name. A probe of a few tokens says
which hooks fire, once and in which shape, in which order, and which of them the logits depend on: a
hook that shows what was already used up would take a change and drop it, so it is no site here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from workbench.core.axes import SCORES, Resid
from workbench.core.sites import Site
from workbench.models.bridged_step import Form, is_hidden

OUTSIDE: Mapping[str, str] = MappingProxyType(
    {
        "hook_embed": "embed.hook_out",
        "hook_pos_embed": "pos_embed.hook_out",
        "hook_unembed": "unembed.hook_out",
    }
)
# Within a block, by our names; the bridge's `hook_resid_mid` acts on what the neurons read alone.
INSIDE: Mapping[str, str] = MappingProxyType(
    {
        "hook_resid_pre": "hook_in",
        **{f"attn.hook_{name}": f"attn.hook_{name}" for name in ("q", "k", "v", "rot_q", "rot_k")},
        "attn.hook_attn_scores": "attn.hook_attn_scores",
        "attn.hook_pattern": "attn.hook_pattern",
        "attn.hook_z": "attn.hook_z",
        "hook_attn_out": "hook_attn_out",
        "hook_mlp_in": "hook_resid_mid",
        "mlp.hook_pre": "mlp.hook_pre",
        "mlp.hook_pre_linear": "mlp.hook_pre_linear",
        "mlp.hook_post": "mlp.hook_post",
        "hook_mlp_out": "hook_mlp_out",
        "mixer.hook_in": "mixer.hook_in",
        "mixer.in_proj.hook_out": "mixer.in_proj.hook_out",
        "mixer.conv1d.hook_out": "mixer.conv1d.hook_out",
        "mixer.x_proj.hook_out": "mixer.x_proj.hook_out",
        "mixer.dt_proj.hook_out": "mixer.dt_proj.hook_out",
        "mixer.hook_ssm_write": "mixer.hook_ssm_write",
        "mixer.hook_ssm_state": "mixer.hook_ssm_state",
        "mixer.inner_norm.hook_out": "mixer.inner_norm.hook_out",
        "mixer.out_proj.hook_in": "mixer.out_proj.hook_in",
        "mixer.hook_out": "mixer.hook_out",
        "hook_resid_post": "hook_out",
    }
)
NORMS: Mapping[str, str] = MappingProxyType(
    {"ln1": "ln1", "norm": "ln1", "ln1_post": "ln1_post", "ln2": "ln2", "ln2_post": "ln2_post"}
)
CONV = "mixer.conv1d.hook_out"


class Named(NamedTuple):
    """A hook of the bridge, by its own name, and the site it is."""

    hook: str
    site: Site


@final
@dataclass(frozen=True)
class Fired:
    """What a probe saw at a hook: the shapes of each time it was passed."""

    shapes: tuple[tuple[int, ...], ...]
    floating: bool


def names(hooks: Mapping[str, object], n_layers: int, rms: Mapping[str, bool]) -> Iterator[Named]:
    """The hooks that have a name here, each once.

    `rms` says of each norm, by its path, whether it is one without a mean: what such a norm calls
    normalised is not yet multiplied by its weights, here as there; what another does, is.
    """
    seen: set[int] = set()
    for named in (*_outside(rms), *_inside(n_layers, rms)):
        hook = hooks.get(named.hook)
        if hook is not None and id(hook) not in seen:
            seen.add(id(hook))
            yield named


def _outside(rms: Mapping[str, bool]) -> Iterator[Named]:
    yield from (Named(theirs, Site(ours)) for ours, theirs in OUTSIDE.items())
    yield from _norm("ln_final", "ln_final", None, rms)


def _inside(n_layers: int, rms: Mapping[str, bool]) -> Iterator[Named]:
    for layer in range(n_layers):
        at = f"blocks.{layer}."
        for ours, theirs in INSIDE.items():
            yield Named(at + theirs, Site(f"blocks.{{}}.{ours}", layer))
        for theirs, ours in NORMS.items():
            yield from _norm(at + theirs, f"blocks.{{}}.{ours}", layer, rms)


def _norm(path: str, ours: str, layer: int | None, rms: Mapping[str, bool]) -> Iterator[Named]:
    if path in rms:
        normalised = "hook_normalized" if rms[path] else "hook_out"
        yield Named(f"{path}.hook_scale", Site(f"{ours}.hook_scale", layer))
        yield Named(f"{path}.{normalised}", Site(f"{ours}.hook_normalized", layer))


def form_of(site: Site, fired: Fired, rows: int, columns: int) -> Form | str:
    """How a hook's tensors read with the site's axes; why they do not, in words.

    `rows` and `columns` are those of the probe, which no other axis is as long as.
    """
    shape, *again = fired.shapes
    if again:
        return f"passed {len(fired.shapes)} times in a run"
    axes = site.axes
    fits = len(shape) == len(axes) and shape[0] == rows and fired.floating
    if fits and site.short == CONV and shape[2] >= columns:
        return _channels_first(shape[2] - columns)
    if fits and "query" in axes and shape[2:] == (columns, columns):
        return MASKED if site.short in SCORES else AS_IT_IS
    if fits and "pos" in axes and shape[1] == columns:
        return AS_IT_IS
    if fits and axes[2:3] == ("head",) and shape[2] == columns:
        return SWAPPED
    return f"its shape {shape} is none of {', '.join(axes)}"


def _same(value: Tensor) -> Tensor:
    return value


def _swapped(value: Tensor) -> Tensor:
    return value.transpose(1, 2)


def _masked(scores: Tensor) -> Tensor:
    """Scores with -inf where the bridge has a number so low that nothing is left of it."""
    return scores.masked_fill(is_hidden(scores), -torch.inf)


def _unmasked(left: Tensor, own: Tensor) -> Tensor:
    """Scores as the bridge has them; where it masked, nobody sees whatever a tap wrote there."""
    least = torch.finfo(own.dtype).min
    return left.masked_fill(is_hidden(own), least).clamp(min=least)


AS_IT_IS = Form(_same, lambda left, _own: left)
SWAPPED = Form(_swapped, lambda left, _own: left.transpose(1, 2))
MASKED = Form(_masked, _unmasked)


def _channels_first(tail: int) -> Form:
    """Channels before positions, and `tail` columns more, which the model cuts off."""

    def show(value: Tensor) -> Tensor:
        return value[..., : value.shape[-1] - tail].transpose(1, 2)

    def back(left: Tensor, own: Tensor) -> Tensor:
        return torch.cat([left.transpose(1, 2), own[..., own.shape[-1] - tail :]], -1)

    return Form(show, back)


def adds_up(before: Resid, written: Resid, after: Resid) -> bool:
    """Whether a stream is the one before and what was written, within rounding."""
    if before.shape != after.shape or written.shape != after.shape:
        return False
    off = (before + written - after).abs().max()
    return bool(off <= 1e-5 * after.abs().max().clamp(min=1))


def why_not(hooks: Mapping[str, Any], known: Mapping[str, str]) -> Mapping[str, str]:
    """Why each of the bridge's hooks is no site, by its name; all others are."""
    found = {
        name: known.get(name, "no site of ours has its meaning")
        for name, hook in hooks.items()
        if name == hook.name
    }
    return MappingProxyType(found)
