"""Experts: a router chooses a few feed-forwards for each token, and only those are computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import Resid
from workbench.core.errors import OptionError
from workbench.core.tap import Tap
from workbench.models.config import Activation
from workbench.models.layers.context import At
from workbench.models.layers.mlp import FeedForward, GatedMLP

Scores = Float[Tensor, "batch pos expert"]
Weights = Float[Tensor, "batch pos k"]
Indices = Int[Tensor, "batch pos k"]
Choice = Callable[[Scores, int], tuple[Weights, Indices]]
Chosen = Float[Tensor, "token d_model"]


def of_all(scores: Scores, k: int) -> tuple[Weights, Indices]:
    """The k largest of all experts' probabilities."""
    weights, indices = _probabilities(scores).topk(k, -1)
    return weights.to(scores.dtype), indices


def of_all_normalised(scores: Scores, k: int) -> tuple[Weights, Indices]:
    """The same, divided by their sum."""
    weights, indices = _probabilities(scores).topk(k, -1)
    return (weights / weights.sum(-1, keepdim=True)).to(scores.dtype), indices


def of_chosen(scores: Scores, k: int) -> tuple[Weights, Indices]:
    """The probabilities of the k best experts among themselves."""
    best, indices = scores.topk(k, -1)
    return best.softmax(-1), indices


def _probabilities(scores: Scores) -> Scores:
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    return wide.softmax(-1)


class Expert(nn.Module, ABC):
    """One feed-forward among many; has no sites of its own."""

    @abstractmethod
    def write(self, x: Chosen) -> Chosen:
        """What it writes for the tokens that chose it."""


@final
class GatedExpert(Expert):
    """(act(x W_gate) * x W_in) W_out."""

    def __init__(self, d_model: int, d_mlp: int, act: Activation) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_mlp, bias=False)
        self.up = nn.Linear(d_model, d_mlp, bias=False)
        self.down = nn.Linear(d_mlp, d_model, bias=False)
        self.act = act

    @override
    def write(self, x: Chosen) -> Chosen:
        return self.down(self.act(self.gate(x)) * self.up(x))


@final
class ClampedExpert(Expert):
    """((up + 1) * gate * sigmoid(alpha gate)) W_out + b_out, gate and up no larger than `limit`.

    Gate and up are every other column of one matrix, as GPT-OSS keeps them.
    """

    def __init__(self, d_model: int, d_mlp: int, alpha: float, limit: float) -> None:
        super().__init__()
        self.joint = nn.Parameter(torch.empty(d_model, 2 * d_mlp))
        self.joint_bias = nn.Parameter(torch.empty(2 * d_mlp))
        self.down = nn.Parameter(torch.empty(d_mlp, d_model))
        self.down_bias = nn.Parameter(torch.empty(d_model))
        self.alpha, self.limit = alpha, limit

    @override
    def write(self, x: Chosen) -> Chosen:
        both = x @ self.joint + self.joint_bias
        gate = both[..., ::2].clamp(max=self.limit)
        up = both[..., 1::2].clamp(-self.limit, self.limit)
        return ((up + 1) * gate * (gate * self.alpha).sigmoid()) @ self.down + self.down_bias


@final
class SharedExpert(nn.Module):
    """A feed-forward for every token, times a gate of its own; has the sites of one."""

    def __init__(self, d_model: int, mlp: GatedMLP) -> None:
        super().__init__()
        self.mlp, self.gate = mlp, nn.Linear(d_model, 1, bias=False)

    def write(self, x: Resid, tap: Tap) -> Resid:
        """What it writes."""
        return self.gate(x).sigmoid() * self.mlp.feed(x, tap)


@final
class Experts(FeedForward):
    """The chosen experts' writings, weighted, and (where there is one) the shared expert's.

    `hook_expert_indices` are whole numbers, in falling order of `hook_expert_weights`.
    """

    def __init__(  # noqa: PLR0913 - the parts of a mixture
        self,
        d_model: int,
        experts: Sequence[Expert],
        at: At,
        *,
        k: int,
        choose: Choice,
        bias: bool = False,
        shared: SharedExpert | None = None,
    ) -> None:
        super().__init__()
        if k > len(experts):
            raise OptionError("experts per token", f"at most {len(experts)}", k)
        self.router = nn.Linear(d_model, len(experts), bias=bias)
        self.experts, self.shared = nn.ModuleList(experts), shared
        self.k, self.choose = k, choose
        self.at_indices, self.at_weights = (
            at("mlp.hook_expert_indices"),
            at("mlp.hook_expert_weights"),
        )
        own = () if shared is None else shared.mlp.sites
        self.sites = (self.at_indices, self.at_weights, *own)

    @override
    def feed(self, x: Resid, tap: Tap) -> Resid:
        weights, indices = self.choose(self.router(x), self.k)
        indices, weights = tap(self.at_indices, indices), tap(self.at_weights, weights)
        written = self._mixed(x.flatten(0, 1), indices.flatten(0, 1), weights.flatten(0, 1))
        written = written.view_as(x)
        return written if self.shared is None else written + self.shared.write(x, tap)

    def _mixed(
        self, x: Chosen, indices: Int[Tensor, "token k"], weights: Float[Tensor, "token k"]
    ) -> Chosen:
        tokens, parts = list[Tensor](), list[Tensor]()
        for index, expert in self._asked(indices):
            token, place = (indices == index).nonzero(as_tuple=True)
            parts.append(expert.write(x[token]) * weights[token, place, None])
            tokens.append(token)
        return torch.zeros_like(x).index_add(0, torch.cat(tokens), torch.cat(parts).to(x.dtype))

    def _asked(self, indices: Tensor) -> list[tuple[int, Expert]]:
        """The experts that some token chose.

        Raises:
            OptionError: If an intervention chose one that is not there.
        """
        asked: list[int] = indices.unique().tolist()
        known = {i: part for i, part in enumerate(self.experts) if isinstance(part, Expert)}
        strange = [index for index in asked if index not in known]
        if strange:
            raise OptionError(str(self.at_indices), f"within 0…{len(known) - 1}", strange)
        return [(index, known[index]) for index in asked]
