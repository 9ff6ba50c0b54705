"""Activation patching: what the metric becomes where a corrupted run gets a clean run's activation.

Notable: a metric is any function of all logits and a setter any function of an activation, as in
the classic; yet cells run in batches, from the block and position where they differ (`_cells.py`).
The raw metric is returned, with no baseline subtracted, in float32.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, final, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.compat.transformer_lens._cells import (
    Base,
    Cell,
    Metric,
    as_number,
    base_run,
    hooked,
    measured,
)
from workbench.compat.transformer_lens._direct_paths import (
    get_act_patch_direct_path,
    get_act_patch_direct_path_all_sources,
)
from workbench.compat.transformer_lens._protocols import Cache, PatchedModel
from workbench.compat.transformer_lens._setters import (
    Index,
    layer_head_dest_src_pos_pattern_patch_setter,
    layer_head_pattern_patch_setter,
    layer_head_pos_pattern_patch_setter,
    layer_head_vector_patch_setter,
    layer_pos_head_vector_patch_setter,
    layer_pos_patch_setter,
)
from workbench.compat.transformer_lens.names import get_act_name
from workbench.core.errors import OptionError, UnknownNameError
from workbench.core.operands import check_like
from workbench.core.sites import Site, one_site

__all__ = [
    "generic_activation_patch",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_block_every",
    "get_act_patch_direct_path",
    "get_act_patch_direct_path_all_sources",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_pre",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
    "make_df_from_ranges",
]

Setter = Callable[[Tensor, Index, Tensor], Any]
Tokens = Int[Tensor, "batch pos"]
Values = Float[Tensor, "..."]
Patched: TypeAlias = Any  # Values, or with return_index_df Values and the data frame


@runtime_checkable
class Frame(Protocol):
    """What is asked of a pandas data frame of indices."""

    def to_numpy(self) -> Any:
        """Its values."""
        ...


def generic_activation_patch(  # noqa: PLR0913 - the classic signature
    model: PatchedModel,
    corrupted_tokens: Tokens,
    clean_cache: Cache,
    patching_metric: Metric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: Frame | None = None,
    return_index_df: bool = False,  # noqa: FBT001, FBT002
) -> Patched:
    """The metric of the corrupted run with one activation changed, for every index.

    `patch_setter(corrupted, index, clean)` returns the activation that stands at
    `activation_name` of layer `index[0]`; it owns `corrupted`, and may write into it. Indices run
    over the axes (`layer pos head_index head src_pos dest_pos`), or are the rows of `index_df`,
    whose first column is the layer; the values have the shape of the axes, or are flat.
    `patching_metric(logits)` is one number for the logits of all examples and positions.

    Where hooks stand on the model each cell is a run of its own, as they may look at a whole batch.

    Raises:
        OptionError: If both or neither of axes and frame are given, or the metric is no number.
        UnknownNameError: If an axis or the activation is unknown.
        ShapeError: If the setter returns something else than a like tensor.
    """
    if (index_axis_names is None) == (index_df is None):
        raise OptionError("index_axis_names and index_df", "given one without the other", index_df)
    axes = None
    if index_axis_names is not None:
        ranges = _ranges(model, corrupted_tokens, clean_cache, activation_name)
        axes = {name: _range(ranges, name) for name in index_axis_names}
        indices = list(itertools.product(*map(range, axes.values())))
    else:
        indices = _rows(index_df)
    sweep = _Sweep(model, corrupted_tokens, clean_cache, patch_setter, activation_name, indices)
    flat = sweep.one_by_one(patching_metric) if hooked(model) else sweep.batched(patching_metric)
    values = flat if axes is None else flat.reshape(*axes.values())
    if not return_index_df:
        return values
    return values, index_df if axes is None else make_df_from_ranges([*axes.values()], [*axes])


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> Any:
    """A data frame of every combination of indices, the last column running fastest."""
    import pandas as pd

    rows = list(itertools.product(*map(range, column_max_ranges)))
    return pd.DataFrame(rows, columns=list(column_names))


@final
@dataclass(frozen=True, eq=False)
class _Sweep:
    model: PatchedModel
    tokens: Tensor
    clean: Cache
    setter: Setter
    activation: str
    indices: list[tuple[int, ...]]

    def batched(self, metric: Metric) -> Values:
        """Every cell, as few batches."""
        names = {index[0]: self._name(index) for index in self.indices}
        known = self.model.engine.sites
        sites = {layer: one_site(name, known) for layer, name in names.items()}
        in_order = tuple(sites[layer] for layer in sorted(sites))
        base = base_run(self.model, self.tokens, in_order, self.clean)
        return measured(base, self._cells(base, sites), len(self.indices), metric)

    def one_by_one(self, metric: Metric) -> Values:
        """Every cell as a run of its own, after the hooks that stand on the model."""
        values = torch.zeros(len(self.indices), device=self.tokens.device)
        for number, index in enumerate(self.indices):

            def patch(value: Tensor, hook: object, index: Index = index) -> Any:
                del hook
                return self.setter(value, index, self.clean[self._name(index)])

            hooks = [(self._name(index), patch)]
            with torch.no_grad():
                logits = self.model.run_with_hooks(self.tokens, fwd_hooks=hooks)
                values[number] = as_number(metric(logits))
        return values

    def _cells(self, base: Base, sites: Mapping[int, Site]) -> Iterator[Cell]:
        in_order = sorted(range(len(self.indices)), key=lambda number: self.indices[number][0])
        for number in in_order:
            index = self.indices[number]
            site = sites[index[0]]
            own = base.values[site].clone()
            given = self.setter(own, list(index), self.clean[str(site)])
            new = own if given is None else given
            check_like(new, own, site)
            yield Cell(number, site, new)

    def _name(self, index: Index) -> str:
        return get_act_name(self.activation, index[0])


def _rows(frame: Frame | None) -> list[tuple[int, ...]]:
    return [] if frame is None else [tuple(row) for row in frame.to_numpy().tolist()]


def _ranges(
    model: PatchedModel, tokens: Tensor, clean: Cache, activation: str
) -> Mapping[str, int]:
    name = get_act_name(activation, 0)
    site = one_site(name, model.engine.sites)
    heads = model.cfg.n_heads
    if "head" in site.axes:  # k and v have one for each group
        heads = clean[name].shape[site.axes.index("head")]
    positions = dict.fromkeys(("pos", "src_pos", "dest_pos"), tokens.shape[-1])
    return {"layer": model.cfg.n_layers, "head": heads, "head_index": heads, **positions}


def _range(ranges: Mapping[str, int], axis: str) -> int:
    if axis not in ranges:
        raise UnknownNameError("axis", axis, ranges)
    return ranges[axis]


# --- ready-made sweeps ----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class ActivationPatch:
    """A ready-made sweep: one activation, and the axes its indices run over."""

    activation_name: str
    axes: tuple[str, ...]
    patch_setter: Setter

    def __call__(
        self,
        model: PatchedModel,
        corrupted_tokens: Tokens,
        clean_cache: Cache,
        patching_metric: Metric,
        return_index_df: bool = False,  # noqa: FBT001, FBT002
    ) -> Patched:
        """The metric of each cell, in the shape of the axes."""
        return generic_activation_patch(
            model,
            corrupted_tokens,
            clean_cache,
            patching_metric,
            self.patch_setter,
            self.activation_name,
            self.axes,
            return_index_df=return_index_df,
        )


_POS, _POS_HEAD, _HEAD = ("layer", "pos"), ("layer", "pos", "head"), ("layer", "head")
_DEST, _DEST_SRC = ("layer", "head_index", "dest_pos"), ("layer", "head", "dest_pos", "src_pos")

get_act_patch_resid_pre = ActivationPatch("resid_pre", _POS, layer_pos_patch_setter)
get_act_patch_resid_mid = ActivationPatch("resid_mid", _POS, layer_pos_patch_setter)
get_act_patch_attn_out = ActivationPatch("attn_out", _POS, layer_pos_patch_setter)
get_act_patch_mlp_out = ActivationPatch("mlp_out", _POS, layer_pos_patch_setter)

get_act_patch_attn_head_out_by_pos = ActivationPatch(
    "z", _POS_HEAD, layer_pos_head_vector_patch_setter
)
get_act_patch_attn_head_q_by_pos = ActivationPatch(
    "q", _POS_HEAD, layer_pos_head_vector_patch_setter
)
get_act_patch_attn_head_k_by_pos = ActivationPatch(
    "k", _POS_HEAD, layer_pos_head_vector_patch_setter
)
get_act_patch_attn_head_v_by_pos = ActivationPatch(
    "v", _POS_HEAD, layer_pos_head_vector_patch_setter
)
get_act_patch_attn_head_pattern_by_pos = ActivationPatch(
    "pattern", _DEST, layer_head_pos_pattern_patch_setter
)
get_act_patch_attn_head_pattern_dest_src_pos = ActivationPatch(
    "pattern", _DEST_SRC, layer_head_dest_src_pos_pattern_patch_setter
)

get_act_patch_attn_head_out_all_pos = ActivationPatch("z", _HEAD, layer_head_vector_patch_setter)
get_act_patch_attn_head_q_all_pos = ActivationPatch("q", _HEAD, layer_head_vector_patch_setter)
get_act_patch_attn_head_k_all_pos = ActivationPatch("k", _HEAD, layer_head_vector_patch_setter)
get_act_patch_attn_head_v_all_pos = ActivationPatch("v", _HEAD, layer_head_vector_patch_setter)
get_act_patch_attn_head_pattern_all_pos = ActivationPatch(
    "pattern", _HEAD, layer_head_pattern_patch_setter
)


def get_act_patch_attn_head_all_pos_every(
    model: PatchedModel, corrupted_tokens: Tokens, clean_cache: Cache, metric: Metric
) -> Float[Tensor, "five layer head"]:
    """Heads' out, q, k, v and pattern; k and v have one value per group, zeros behind them."""
    parts = (
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    )
    values = [part(model, corrupted_tokens, clean_cache, metric) for part in parts]
    return torch.stack([_widened(value, model.cfg.n_heads) for value in values])


def get_act_patch_attn_head_by_pos_every(
    model: PatchedModel, corrupted_tokens: Tokens, clean_cache: Cache, metric: Metric
) -> Float[Tensor, "five layer pos head"]:
    """Heads' out, q, k, v and pattern (by destination) at each position; k and v as above."""
    parts = (
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
    )
    values = [part(model, corrupted_tokens, clean_cache, metric) for part in parts]
    pattern = get_act_patch_attn_head_pattern_by_pos(model, corrupted_tokens, clean_cache, metric)
    values.append(rearrange(pattern, "layer head pos -> layer pos head"))
    return torch.stack([_widened(value, model.cfg.n_heads) for value in values])


def get_act_patch_block_every(
    model: PatchedModel, corrupted_tokens: Tokens, clean_cache: Cache, metric: Metric
) -> Float[Tensor, "three layer pos"]:
    """The stream before each block, what attention writes, and what the neurons write."""
    parts = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return torch.stack([part(model, corrupted_tokens, clean_cache, metric) for part in parts])


def _widened(values: Tensor, n_heads: int) -> Tensor:
    return F.pad(values, (0, n_heads - values.shape[-1]))
