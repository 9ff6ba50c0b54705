"""What several decoder families have in common: sizes, usual bricks, joint matrices taken apart.

Notable: rows of a joint matrix that lie apart are copied, one matrix at a time, and what was read
of the file is given back after each, so that loading takes no more memory for it.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes
from workbench.models.checkpoint import release
from workbench.models.config import Config
from workbench.models.layers.attention import Attention, Heads
from workbench.models.layers.context import Angles, in_block, outside_blocks
from workbench.models.layers.norm import LayerNorm, Norm
from workbench.models.layers.positions import Rotary, rotary, rotate
from workbench.models.transformer import ParallelBlock, Stack

Parts = tuple[Tensor, Tensor, Tensor]  # of queries, keys and values
KINDS = ("weight", "bias")


def both(names: Mapping[str, str]) -> dict[str, str]:
    """A table of weights and biases, from one of the modules that have them."""
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in names.items() for kind in KINDS}


def in_layers(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """The table of weights and biases of one block's modules; `prefix` has a `{}` for the layer."""
    return both({f"{prefix}.{old}": f"blocks.{{}}.{new}" for old, new in names.items()})


def head_width(config: Config, d_model: int, n_heads: int) -> int:
    """The width of a head where heads share the stream's.

    Raises:
        OptionError: If they cannot.
    """
    if d_model % n_heads:
        what = f"{config.family}: the width of the stream"
        raise OptionError(what, f"a multiple of the {n_heads} heads", d_model)
    return d_model // n_heads


def layer_norm(sizes: Sizes, eps: float, name: str, layer: int | None = None) -> LayerNorm:
    """A LayerNorm of the stream, in a block or after all of them."""
    at = outside_blocks if layer is None else in_block(layer)
    return LayerNorm(sizes.d_model, eps, at, name)


def attention(  # noqa: PLR0913 - the choices of families
    layer: int,
    sizes: Sizes,
    *,
    bias: bool,
    out_bias: bool,
    rotary: bool = False,
    scale: float | None = None,
    turn: Callable[[Heads, Angles], Heads] = rotate,
) -> Attention:
    """Attention of the model's sizes; scores are divided by the root of a head's width."""
    return Attention(
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_key_value_heads,
        sizes.d_head,
        in_block(layer),
        scale=sizes.d_head**-0.5 if scale is None else scale,
        rotary=rotary,
        bias=bias,
        out_bias=out_bias,
        turn=turn,
    )


def partly_rotary(config: Config, d_head: int, *, base: str, share: str, usual: float) -> Rotary:
    """A rotation of the first coordinates of each head, under old and new names of its options.

    `base` and `share` name the older keys; `usual` is the share where the config names none.

    Raises:
        OptionError: If the options are no table, or turn no coordinates at all.
    """
    options: dict[str, Any] = {
        "rope_theta": config.number(base, 10000.0),
        "partial_rotary_factor": config.number(share, usual),
    }
    for name in ("rope_scaling", "rope_parameters"):
        found = config.values.get(name) or {}
        if not isinstance(found, Mapping):
            raise OptionError(f"{config.family}: config key {name!r}", "a table", found)
        options.update(cast("Mapping[str, Any]", found))
    part = options.pop("partial_rotary_factor")
    width = int(d_head * part) if isinstance(part, int | float) else 0
    if not 0 < width <= d_head:
        raise OptionError(f"{config.family}: {share}", f"a share of {d_head} coordinates", part)
    return rotary(width, options)


def apart(
    found: Mapping[str, Tensor], weights: Mapping[str, Tensor], cut: Callable[[Tensor], Parts]
) -> dict[str, Tensor]:
    """The weights with every `attn.qkv` cut into `attn.q`, `attn.k` and `attn.v`."""
    made: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if ".attn.qkv." not in name or name.startswith("unknown:"):
            made[name] = tensor
            continue
        for which, part in zip("qkv", cut(tensor), strict=True):
            made[name.replace(".qkv.", f".{which}.")] = part
        release(weights)
    return made


def by_group(sizes: Sizes) -> Callable[[Tensor], Parts]:
    """Cuts rows that stand by group of heads: queries of the group, its key, its value."""

    def cut(tensor: Tensor) -> Parts:
        rows = (sizes.n_heads + 2 * sizes.n_key_value_heads) * sizes.d_head
        if len(tensor) != rows:  # the loader says so, of the queries
            return tensor, tensor, tensor
        parts = tensor.unflatten(0, (sizes.n_key_value_heads, -1, sizes.d_head))
        q, k, v = (
            parts[:, :-2].flatten(0, 2),
            parts[:, -2].flatten(0, 1),
            parts[:, -1].flatten(0, 1),
        )
        return q.contiguous(), k.contiguous(), v.contiguous()

    return cut


def in_blocks_of_rows(sizes: Sizes) -> Callable[[Tensor], Parts]:
    """Cuts rows of which all queries come first, then all keys, then all values; copies nothing."""

    def cut(tensor: Tensor) -> Parts:
        q, kv = sizes.n_heads * sizes.d_head, sizes.n_key_value_heads * sizes.d_head
        if len(tensor) != q + 2 * kv:
            return tensor, tensor, tensor
        one, two, three = tensor.split([q, kv, kv])
        return one, two, three

    return cut


def one_norm(sizes: Sizes, eps: float, layer: int) -> tuple[LayerNorm, LayerNorm]:
    """One norm in two places: each has sites of its own, and both have the same weights."""
    ln1, ln2 = layer_norm(sizes, eps, "ln1", layer), layer_norm(sizes, eps, "ln2", layer)
    ln2.weight, ln2.bias = ln1.weight, ln1.bias
    return ln1, ln2


def in_both_places(found: Mapping[str, Tensor], stack: Stack) -> dict[str, Tensor]:
    """The weights of each `ln1` as those of `ln2` too, in the blocks in which these are one."""
    made = dict(found)
    for layer, block in enumerate(stack.blocks):
        if isinstance(block, ParallelBlock) and _are_one(block.ln1, block.ln2):
            names = {f"blocks.{layer}.ln1.{k}": f"blocks.{layer}.ln2.{k}" for k in KINDS}
            made |= {new: found[old] for old, new in names.items() if old in found}
    return made


def _are_one(norm: Norm, other: Norm) -> bool:
    both_normal = isinstance(norm, LayerNorm) and isinstance(other, LayerNorm)
    return both_normal and norm.weight is other.weight


def neighbours(config: Config, d_head: int) -> Rotary:
    """GPT-J's rotation: of neighbours among the first `rotary_dim` coordinates of each head.

    Raises:
        OptionError: If these are odd, or more than a head has.
    """
    width = config.count("rotary_dim")
    if width % 2 or width > d_head:
        raise OptionError(f"{config.family}: rotary_dim", f"even and at most {d_head}", width)
    steps = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    return Rotary(1.0 / 10000.0**steps, neighbours=True)


def by_columns(tensor: Tensor) -> Parts:
    """Cuts thirds of a transposed matrix (d_model, 3 d_model), or of its bias, as views."""
    q, k, v = (part.t() if part.ndim > 1 else part for part in tensor.chunk(3, dim=-1))
    return q, k, v


def turned(found: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights with the matrices of these names transposed, as views."""
    return {name: w.t() if name.endswith(names) else w for name, w in found.items()}
