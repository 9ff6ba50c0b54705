"""Conditional steering: `gate=wb.gates.above(vector, 3.0)` lets a change through or not.

Notable: a gate reads activations at the tokens up to the one it decides on, at the intervention's
own site or an earlier one, each row its own. So it means the same with a cache, in chunks, in a
batch and in one full forward. What it must remember from pass to pass belongs to the run: see
`workbench.core.gating`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from workbench.core.errors import FormatError, OptionError, ShapeError, WorkbenchError
from workbench.core.operands import owned
from workbench.core.options import number
from workbench.core.sites import Site

Shape = Literal["step", "sigmoid"]
Hold = Literal["token", "prompt", "while"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
HOLDS: tuple[Hold, ...] = get_args(Hold)
Weights = Float[Tensor, "row pos"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Gate:
    """How much of a change is let through: `h <- h + g (T(h) - h)`, g of the score vᵀh + bias.

    A "step" is 1 where the score is above 0 and else 0, a "sigmoid" its logistic function. h is the
    activation at `site` as the run goes on with it; at the intervention's own (or None), as the
    intervention finds it. `hold` says whose score decides: "token", each token its own; "prompt",
    that of the prompt's last token for it and all after it, and nothing before is let through;
    "while", each its own until the first shut one among those the intervention selects, and none
    from there on.
    """

    vector: Float[Tensor, " d"]
    bias: float
    site: Site | None = None
    shape: Shape = "step"
    hold: Hold = "token"

    def __post_init__(self) -> None:
        """Refuses what can decide nothing.

        Raises:
            ShapeError: If the vector is none.
            OptionError: If shape or hold is unknown, the site has keys, or a slope is to be held.
        """
        number("bias", self.bias)
        if self.vector.ndim != 1 or not self.vector.numel():
            raise ShapeError("gate", "a vector (d)", str(tuple(self.vector.shape)))
        if self.shape not in SHAPES:
            raise OptionError("shape", f"one of {', '.join(SHAPES)}", self.shape)
        if self.hold not in HOLDS:
            raise OptionError("hold", f"one of {', '.join(HOLDS)}", self.hold)
        if self.hold == "while" and self.shape != "step":
            raise OptionError(
                "hold", "'token' or 'prompt' for a sigmoid, which is never shut", self.hold
            )
        if self.site is not None and self.site.axes[1] != "pos":
            axes = " ".join(self.site.axes)
            raise OptionError("gate", f"read where tokens have one activation, not {axes}", "")

    def score(self, value: Float[Tensor, "row pos ..."], site: Site) -> Weights:
        """vᵀh + bias of each token, in double precision: a threshold lies between two numbers.

        Raises:
            ShapeError: If the vector has not the width of the site.
        """
        flat = value.flatten(2)
        if flat.shape[-1] != len(self.vector):
            raise ShapeError(
                f"gate at {site}", f"a vector of {flat.shape[-1]}", f"{len(self.vector)}"
            )
        # No product of matrices: its rounding depends on how many rows there are.
        return (flat.double() * self.vector.to(value.device, torch.double)).sum(-1) + self.bias

    def opened(self, score: Tensor) -> Tensor:
        """How far it is open at a score: 0 is shut, 1 is wide open."""
        return score.sigmoid() if self.shape == "sigmoid" else (score > 0).to(score)

    def to_json(self) -> dict[str, object]:
        """All but the vector as plain data; `gate_from_json` reads it."""
        site = None if self.site is None else str(self.site)
        return {"site": site, "bias": self.bias, "shape": self.shape, "hold": self.hold}

    @override
    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={value!r}" for name, value in self.to_json().items())
        return f"Gate(({len(self.vector)}), {parts})"


def above(
    vector: Float[Tensor, " d"],
    threshold: float,
    *,
    site: str | Site | None = None,
    hold: Hold = "token",
) -> Gate:
    """Open where vᵀh is above a threshold: in activations' units, if the vector has norm 1."""
    threshold = number("threshold", threshold)
    return Gate(owned("gates.above", vector), -threshold, _site(site), "step", hold)


def below(
    vector: Float[Tensor, " d"],
    threshold: float,
    *,
    site: str | Site | None = None,
    hold: Hold = "token",
) -> Gate:
    """Open where vᵀh is below a threshold."""
    threshold = number("threshold", threshold)
    return Gate(-owned("gates.below", vector), threshold, _site(site), "step", hold)


def sigmoid(
    vector: Float[Tensor, " d"],
    bias: float = 0.0,
    *,
    site: str | Site | None = None,
    hold: Hold = "token",
) -> Gate:
    """Open by 1 / (1 + exp(-(vᵀh + bias))), as a logistic probe says."""
    return Gate(owned("gates.sigmoid", vector), number("bias", bias), _site(site), "sigmoid", hold)


def gate_from_json(data: object, vector: Tensor) -> Gate:
    """Reads what `Gate.to_json` wrote.

    Raises:
        FormatError: If it is no gate.
    """
    if not isinstance(data, dict) or set(cast("dict[str, object]", data)) != set(_KEYS):
        raise FormatError(f"A gate has {', '.join(_KEYS)}, got {data!r:.80}.")
    read = cast("dict[str, Any]", data)
    try:
        bias, own = number("bias", read["bias"]), owned("gate", vector)
        return Gate(own, bias, _site(read["site"]), read["shape"], read["hold"])
    except WorkbenchError as error:
        raise FormatError(f"The gate {data!r:.80} cannot be used: {error}") from None


_KEYS: Mapping[str, None] = MappingProxyType(dict.fromkeys(("site", "bias", "shape", "hold")))


def _site(site: object) -> Site | None:
    """Where a gate reads, as a caller writes it.

    Raises:
        OptionError: If it is no name.
    """
    if site is None or isinstance(site, Site):
        return site
    if not isinstance(site, str):
        raise OptionError("site", "a site or its name, or left out", site)
    return Site.parse(site)
