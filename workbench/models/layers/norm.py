"""Norms; fused unless someone asks for the scale or the normalised stream inside.

Notable, as in the classic interface: `hook_normalized` of a LayerNorm is after its weight and bias,
of an RMSNorm before its weight.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import At

Stream = Float[Tensor, "batch pos *head d_model"]  # with heads where each reads a stream of its own


class Norm(nn.Module, ABC):
    """A normalisation of the residual stream, with its two sites."""

    sites: Sites

    @abstractmethod
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        """The normalised stream, as the next linear map reads it."""


@final
class RMSNorm(Norm):
    """x / sqrt(mean(x²) + eps) * weight."""

    def __init__(self, width: int, eps: float, at: At, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.scale, self.normalized = at(f"{name}.hook_scale"), at(f"{name}.hook_normalized")
        self.sites = (self.scale, self.normalized)

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        if not (tap.wants(self.scale) or tap.wants(self.normalized)):
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scale = tap(self.scale, (wide.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return (tap(self.normalized, wide / scale) * self.weight).to(x.dtype)


@final
class LayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * weight + bias."""

    def __init__(self, width: int, eps: float, at: At, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.scale, self.normalized = at(f"{name}.hook_scale"), at(f"{name}.hook_normalized")
        self.sites = (self.scale, self.normalized)

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        if not (tap.wants(self.scale) or tap.wants(self.normalized)):
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = wide - wide.mean(-1, keepdim=True)
        scale = tap(self.scale, (centred.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return tap(self.normalized, centred / scale * self.weight + self.bias).to(x.dtype)


@final
class BiaslessLayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * weight."""

    def __init__(self, width: int, eps: float, at: At, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.scale, self.normalized = at(f"{name}.hook_scale"), at(f"{name}.hook_normalized")
        self.sites = (self.scale, self.normalized)

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        if not (tap.wants(self.scale) or tap.wants(self.normalized)):
            return F.layer_norm(x, x.shape[-1:], self.weight, None, self.eps)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = wide - wide.mean(-1, keepdim=True)
        scale = tap(self.scale, (centred.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return tap(self.normalized, centred / scale * self.weight).to(x.dtype)


@final
class PlainRMSNorm(Norm):
    """x / sqrt(mean(x²) + eps): what is left when the weight is folded into what reads it."""

    def __init__(self, eps: float, at: At, name: str) -> None:
        super().__init__()
        self.eps = eps
        self.scale, self.normalized = at(f"{name}.hook_scale"), at(f"{name}.hook_normalized")
        self.sites = (self.scale, self.normalized)

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        if not (tap.wants(self.scale) or tap.wants(self.normalized)):
            return F.rms_norm(x, x.shape[-1:], None, self.eps)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scale = tap(self.scale, (wide.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return tap(self.normalized, wide / scale).to(x.dtype)


@final
class PlainLayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps): what is left when weight and bias are folded away."""

    def __init__(self, eps: float, at: At, name: str) -> None:
        super().__init__()
        self.eps = eps
        self.scale, self.normalized = at(f"{name}.hook_scale"), at(f"{name}.hook_normalized")
        self.sites = (self.scale, self.normalized)

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        if not (tap.wants(self.scale) or tap.wants(self.normalized)):
            return F.layer_norm(x, x.shape[-1:], None, None, self.eps)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = wide - wide.mean(-1, keepdim=True)
        scale = tap(self.scale, (centred.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return tap(self.normalized, centred / scale).to(x.dtype)


@final
class ShiftedRMSNorm(Norm):
    """x / sqrt(mean(x²) + eps) * (1 + weight), as Gemma has it."""

    def __init__(self, width: int, eps: float, at: At, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.scale, self.normalized = at(f"{name}.hook_scale"), at(f"{name}.hook_normalized")
        self.sites = (self.scale, self.normalized)

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        weight = 1 + self.weight.to(wide)
        if not (tap.wants(self.scale) or tap.wants(self.normalized)):
            return F.rms_norm(wide, x.shape[-1:], weight, self.eps).to(x.dtype)
        scale = tap(self.scale, (wide.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return (tap(self.normalized, wide / scale) * weight).to(x.dtype)


@final
class UnbiasedLayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * weight, over the last axis of the weight."""

    def __init__(self, shape: int | tuple[int, int], eps: float, at: At, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.eps = eps
        self.scale, self.normalized = at(f"{name}.hook_scale"), at(f"{name}.hook_normalized")
        self.sites = (self.scale, self.normalized)

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        weight = self.weight.to(wide)
        if not (tap.wants(self.scale) or tap.wants(self.normalized)):
            return (F.layer_norm(wide, x.shape[-1:], None, None, self.eps) * weight).to(x.dtype)
        centred = wide - wide.mean(-1, keepdim=True)
        scale = tap(self.scale, (centred.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return tap(self.normalized, centred / scale * weight).to(x.dtype)


@final
class OverHeadsRMSNorm(Norm):
    """x / sqrt(mean(x²) + eps) * weight, the mean over all heads together; d_head is the last axis.

    Its sites have the axes of heads: each divides by the same scale.
    """

    def __init__(self, width: int, eps: float, at: At, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.scale, self.normalized = at(f"{name}.hook_scale"), at(f"{name}.hook_normalized")
        self.sites = (self.scale, self.normalized)

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        heads = x.shape[-2:]
        if not (tap.wants(self.scale) or tap.wants(self.normalized)):
            flat = F.rms_norm(x.flatten(-2), self.weight.shape, self.weight, self.eps)
            return flat.unflatten(-1, heads)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scale = (wide.square().mean((-2, -1), keepdim=True) + self.eps).sqrt()
        scale = tap(self.scale, scale.expand(*x.shape[:-1], 1))
        weight = self.weight.unflatten(0, heads)
        return (tap(self.normalized, wide / scale) * weight).to(x.dtype)


@final
class Times(Norm):
    """What is written times a fixed number, as Granite has it; no norm, and no sites."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.sites = ()

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        return x * self.factor


@final
class NoNorm(Norm):
    """No norm at all; hand-built models have none."""

    def __init__(self) -> None:
        super().__init__()
        self.sites = ()

    @override
    def normalise(self, x: Stream, tap: Tap) -> Stream:
        return x
