"""State dicts in every layout the classic wrote, as the one that names each block's weights.

    blocks.0.attn.W_Q    one tensor a block, as 2.x writes: what all are read as
    blocks.0.attn._W_K   the same where heads are grouped: one per key-value head
    blocks.0.attn.W_K    then the property, which repeats each for the heads of its group
    W_Q  W_E  b_U        the properties of the whole model, blocks first
    blocks.0.attn.mask   a constant that 2.x keeps among its weights

Notable: constants are no weights, but those of another model (another rotation, a window) would
mean that its weights say something else here; so they are held against this model's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from workbench.models.transformer import Stack
from workbench.models.views.stacks import blocks_of

CONSTANTS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
_WHOLE = {"W_E": "embed", "W_pos": "pos_embed", "W_U": "unembed", "b_U": "unembed"}
_ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
_SHARED = ("W_K", "W_V", "b_K", "b_V")
_NEURONS = ("W_in", "W_gate", "W_out", "b_in", "b_out")
_STACKED: Mapping[str, str] = MappingProxyType(
    {**dict.fromkeys(_ATTENTION, "attn"), **dict.fromkeys(_NEURONS, "mlp")}
)
_SAME = 1e-2  # of a sine: tables in half precision, or far out, are that near; others differ by 1


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """Weights by the names of 2.x, and what is wrong with how they were given."""

    named: Mapping[str, Tensor]
    problems: tuple[str, ...]


def by_block(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], stack: Stack) -> Weights:
    """Weights in any layout as one tensor a block, named as `expected` is; constants left out."""
    n_layers, found, problems = len(blocks_of(stack)), dict[str, Tensor](), list[str]()
    for name, value in given.items():
        kind = _constant(name, n_layers)
        if kind is not None:
            problems += _strange(kind, name, value, stack)
            continue
        for full, part in _apart(name, value):
            own, weight = _grouped(full, part, expected)
            if own in found:
                problems.append(f"given twice: {own}, the second time as {name}")
            if weight is None:
                problems.append(f"not grouped: heads of one group differ in {full}")
            found[own] = part if weight is None else weight
    return Weights(found, tuple(problems))


def grouped(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights named as 2.x does wherever key-value heads are counted, be they as many as heads."""
    renamed = dict[str, Tensor]()
    for name, value in named.items():
        block, _, leaf = name.rpartition(".")
        renamed[f"{block}._{leaf}" if leaf in _SHARED else name] = value
    return renamed


def constants(stack: Stack, n_ctx: int, device: torch.device) -> dict[str, Tensor]:
    """What 2.x keeps among its weights: one mask a block of n_ctx² truth values, and its like."""
    made = {"IGNORE": torch.tensor(float("-inf"), device=device)}
    if stack.rotary is not None:
        dtype = stack.embed.tokens.dtype
        made["rotary_sin"], made["rotary_cos"] = _turns(stack, n_ctx, device, dtype)
    masks = {window: _seen(n_ctx, window, device) for window in {None, *stack.windows}}
    found: dict[str, Tensor] = {}
    for layer, block in enumerate(blocks_of(stack)):
        own = {"mask": masks[block.attn.window], **made}
        found |= {f"blocks.{layer}.attn.{name}": value for name, value in own.items()}
    return found


def _constant(name: str, n_layers: int) -> str | None:
    """The kind of constant a name says, in a block that there is."""
    block, _, kind = name.rpartition(".")
    inside = any(block == f"blocks.{layer}.attn" for layer in range(n_layers))
    return kind if inside and kind in CONSTANTS else None


def _strange(kind: str, name: str, value: Tensor, stack: Stack) -> Iterator[str]:
    """What is wrong with a constant."""
    if kind == "IGNORE":
        return
    if kind == "mask":
        window = blocks_of(stack)[int(name.split(".")[1])].attn.window
        square = value.ndim == 2 and value.shape[0] == value.shape[1]
        if not square or not torch.equal(value.bool(), _seen(len(value), window, value.device)):
            own = "causal mask" if window is None else f"mask of a window of {window}"
            yield f"another model's: {name} is not the {own}, which is what there is here"
        return
    if stack.rotary is None:
        yield f"unexpected: {name}, as this model has no rotary positions"
        return
    sines = _turns(stack, len(value), value.device, torch.float32)
    own = sines[kind == "rotary_cos"]
    if own.shape != value.shape or bool(((own - value.float()).abs() > _SAME).any()):
        yield f"another model's: {name} turns by other angles than rotary positions here"


def _seen(n_ctx: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys (columns) each query sees: itself and those before it, in its window."""
    causal = torch.ones((n_ctx, n_ctx), dtype=torch.bool, device=device).tril()
    return causal if window is None else causal.triu(1 - window)


def _turns(
    stack: Stack, n_ctx: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sines and cosines, (pos d_rotary)."""
    if stack.rotary is None:
        nothing = torch.empty(0)
        return nothing, nothing
    cos, sin = stack.rotary.angles(torch.arange(n_ctx, device=device)[None], dtype)
    return sin[0, :, 0], cos[0, :, 0]


def _apart(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A property of the whole model by its names in the parts; any other weight as it is."""
    if name in _WHOLE:
        yield f"{_WHOLE[name]}.{name}", value
    elif name in _STACKED and value.ndim > 1:
        for layer, part in enumerate(value):
            yield f"blocks.{layer}.{_STACKED[name]}.{name}", part
    else:
        yield name, value


def _grouped(name: str, value: Tensor, expected: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    """A weight of keys or values by the name it has here; None where it cannot be grouped."""
    block, _, leaf = name.rpartition(".")
    other = f"{block}.{leaf[1:] if leaf.startswith('_') else f'_{leaf}'}"
    if name in expected or other not in expected or leaf.lstrip("_") not in _SHARED:
        return name, value
    groups, heads = len(expected[other]), len(expected[f"{block}.W_Q"])
    if leaf.startswith("_") or len(value) != heads:
        return other, value
    first = value[:: heads // groups]
    same = torch.equal(first.repeat_interleave(heads // groups, 0), value)
    return other, first if same else None
