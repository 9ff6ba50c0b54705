"""Regularised logistic regression, many problems at once, each with a certificate.

Notable: the rows are rotated into the eigenbasis of their covariance, where the Hessian is nearly
diagonal; so L-BFGS with a diagonal metric needs about twenty products with the rows, and folds,
penalties and label columns share each product.

    f(w, b) = Σᵢ cᵢ loss(yᵢ, wᵀzᵢ + b) + ½ λ ‖w‖²   (a sum: scikit-learn's C is 1/λ)

With ∂f/∂b = 0 the residuals are dual feasible, and the duality gap is exactly ‖∂f/∂w‖² / 2λ, which
bounds f - min f. A problem that does not get there raises; there is no unconverged fit.
"""

from dataclasses import dataclass, replace
from typing import NoReturn, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from workbench.core.errors import ConvergenceError

HISTORY = 8  # pairs that L-BFGS remembers; more cost memory, fewer cost iterations
MAX_STEPS = 1000
MAX_HALVINGS = 30
ARMIJO = 1e-4
BIAS_STEPS = 50
ROUNDING = 64  # units in the last place that sums over the rows may be off


@final
@dataclass(frozen=True, eq=False)
class Problems:
    """Logistic problems over shared rows `z`, in coordinates whose Gram matrix is diagonal.

    `counted` is 1 where a row belongs to a problem, 0 where it is held out; `scale` is the
    diagonal of zᵀz. Two classes have one column of margins, more have one each.
    """

    z: Float[Tensor, "row d"]
    scale: Float[Tensor, " d"]
    y: Int[Tensor, "problem row"]
    counted: Float[Tensor, "problem row"]
    penalty: Float[Tensor, " problem"]
    n_classes: int

    @property
    def n_columns(self) -> int:
        """How many margins a row has."""
        return 1 if self.n_classes == 2 else self.n_classes

    def only(self, kept: Tensor) -> "Problems":
        """Some of the problems."""
        return Problems(
            self.z,
            self.scale,
            self.y[kept],
            self.counted[kept],
            self.penalty[kept],
            self.n_classes,
        )


@final
@dataclass(frozen=True, eq=False)
class Solutions:
    """Weights and what certifies them: f(w, b) - min f is at most `gap`."""

    weight: Float[Tensor, "problem column d"]
    bias: Float[Tensor, "problem column"]
    margins: Float[Tensor, "problem column row"]  # of all rows, held-out ones too
    value: Float[Tensor, " problem"]
    gap: Float[Tensor, " problem"]
    slope: Float[Tensor, " problem"]  # the largest |∂f|, along weights and bias
    steps: int


@final
@dataclass(frozen=True, eq=False)
class _State:
    """Where the problems stand; `theta` holds weights and, as its last coordinate, the bias."""

    problems: Problems
    theta: Float[Tensor, "problem column coordinate"]
    margins: Float[Tensor, "problem column row"]
    value: Float[Tensor, " problem"]
    gradient: Float[Tensor, "problem column coordinate"]
    curvature: Float[Tensor, " problem"]  # mean p(1 - p) of the counted rows
    allowed: Float[Tensor, " problem"]  # the largest slope that counts as none
    history: tuple[tuple[Tensor, Tensor, Tensor], ...]  # steps, gradient changes, 1 / their product

    def only(self, kept: Tensor) -> "_State":
        """Some of the problems."""
        return _State(
            self.problems.only(kept),
            self.theta[kept],
            self.margins[kept],
            self.value[kept],
            self.gradient[kept],
            self.curvature[kept],
            self.allowed[kept],
            tuple((step[kept], change[kept], rho[kept]) for step, change, rho in self.history),
        )


def solve(problems: Problems, *, tolerance: float = 1e-8, max_steps: int = MAX_STEPS) -> Solutions:
    """The minimum of every problem, each with a duality gap of at most `tolerance` (1 + |f|).

    Costs two products of the rows with all unfinished problems per step, about 20 steps at the
    default tolerance.

    Raises:
        ConvergenceError: If a problem is not there after `max_steps`.
    """
    state, left = _start(problems, tolerance), torch.arange(len(problems.penalty))
    theta = torch.zeros_like(state.theta)
    margins = torch.zeros_like(state.margins)
    steps = 0
    while True:
        done, certified = _certified(state, tolerance)
        theta[left[done]], margins[left[done]] = certified.theta, certified.margins
        left = left[~done]
        if not len(left):
            return _solutions(problems, theta, margins, steps)
        if steps == max_steps:
            _refuse(state.only(~done), max_steps)
        state = _advance(state.only((~done).nonzero()[:, 0]) if bool(done.any()) else state)
        steps += 1


def margin_loss(
    margins: Float[Tensor, "problem column row"], y: Int[Tensor, "problem row"]
) -> Float[Tensor, "problem row"]:
    """-log p(y), in nats."""
    if margins.shape[1] == 1:
        return -logsigmoid(margins[:, 0] * (2 * y - 1))
    return margins.logsumexp(1) - margins.gather(1, y[:, None])[:, 0]


def _start(problems: Problems, tolerance: float) -> _State:
    count, rows = problems.y.shape
    theta = problems.z.new_zeros(count, problems.n_columns, problems.z.shape[1] + 1)
    margins = problems.z.new_zeros(count, problems.n_columns, rows)
    state = _state(problems, theta, margins, problems.z.new_zeros(count), ())
    # The gap is quadratic in the slope, hence the root; 1e-8 allows a slope of 1e-6.
    allowed = 0.01 * tolerance**0.5 * _largest(state.gradient).clamp(min=1)
    return replace(state, allowed=allowed)


def _state(
    problems: Problems,
    theta: Tensor,
    margins: Tensor,
    allowed: Tensor,
    history: tuple[tuple[Tensor, Tensor, Tensor], ...],
) -> _State:
    p, residual = _residual(problems, margins)
    curvature = torch.einsum("pcn,pn->p", p * (1 - p), problems.counted) / p.shape[1]
    return _State(
        problems,
        theta,
        margins,
        _value(problems, theta, margins),
        _gradient(problems, theta, residual),
        curvature / problems.counted.sum(1),
        allowed,
        history,
    )


def _residual(problems: Problems, margins: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and how far they are from the labels where rows are counted."""
    if problems.n_columns == 1:
        p, truth = margins.sigmoid(), problems.y[:, None]
    else:
        p, truth = margins.softmax(1), one_hot(problems.y, problems.n_classes).transpose(1, 2)
    return p, (p - truth) * problems.counted[:, None]


def _value(problems: Problems, theta: Tensor, margins: Tensor) -> Float[Tensor, " problem"]:
    loss = (margin_loss(margins, problems.y) * problems.counted).sum(1)
    return loss + problems.penalty * theta[..., :-1].square().sum((1, 2)) / 2


def _gradient(problems: Problems, theta: Tensor, residual: Tensor) -> Tensor:
    weights = (residual.flatten(0, 1) @ problems.z).reshape(theta[..., :-1].shape)
    weights = weights + problems.penalty[:, None, None] * theta[..., :-1]
    return torch.cat([weights, residual.sum(-1, keepdim=True)], dim=-1)


def _advance(state: _State) -> _State:
    """One step of L-BFGS, halved until it descends."""
    problems = state.problems
    move = -_newton(state)  # problem column coordinate
    slope = _dot(move, state.gradient)
    along = (move[..., :-1].flatten(0, 1) @ problems.z.T).reshape(state.margins.shape)
    along = along + move[..., -1:]
    theta, margins = _descended(state, move, along, slope)
    found = _state(problems, theta, margins, state.allowed, ())
    step, change = theta - state.theta, found.gradient - state.gradient
    product = _dot(step, change)
    rho = torch.where(product > 0, 1 / product, torch.zeros_like(product))  # 0: a pair unused
    return replace(found, history=(*state.history, (step, change, rho))[-HISTORY:])


def _descended(state: _State, move: Tensor, along: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Where the move leads, and the margins there; halved, problem by problem, until f falls."""
    # Near the optimum the descent drowns in rounding; a step that only rounding spoils is taken.
    slack = _rounding(state.problems) * (1 + state.value.abs())
    size = torch.ones_like(slope)
    theta, margins = state.theta + move, state.margins + along
    for _ in range(MAX_HALVINGS):
        value = _value(state.problems, theta, margins)
        too_far = value > state.value + ARMIJO * size * slope + slack
        if not bool(too_far.any()):
            break
        size = torch.where(too_far, size / 2, size)
        far = size[:, None, None]
        theta, margins = state.theta + far * move, state.margins + far * along
    return theta, margins


def _newton(state: _State) -> Tensor:
    """The inverse Hessian times the gradient, as L-BFGS knows it (two loops over its history)."""
    problems = state.problems
    share = problems.counted.mean(1) * state.curvature
    hessian = share[:, None] * problems.scale + problems.penalty[:, None]  # problem coordinate
    bias = problems.counted.sum(1) * state.curvature
    metric = 1 / torch.cat([hessian, bias[:, None]], dim=1)[:, None]
    left, used = state.gradient, list[Tensor]()
    for step, change, rho in reversed(state.history):
        used.append(rho * _dot(step, left))
        left = left - used[-1][:, None, None] * change
    found = metric * left
    for (step, change, rho), alpha in zip(state.history, reversed(used), strict=True):
        found = found + (alpha - rho * _dot(change, found))[:, None, None] * step
    return found


def _certified(state: _State, tolerance: float) -> tuple[Tensor, _State]:
    """Which problems are at their minimum, and those with the bias at its own.

    Only there is the gap exact, and moving the bias moves the slope along the weights too; a
    problem that this takes out of its tolerance goes on from where it was.
    """
    near = _within(state, tolerance, share=0.5).nonzero()[:, 0]
    done = torch.zeros(len(state.value), dtype=torch.bool)
    if not len(near):
        return done, state.only(near)
    found = _at_flat_bias(state.only(near))
    good = _within(found, tolerance) & _is_flat(found.problems, found.gradient[..., -1])
    done[near] = good
    return done, found.only(good)


def _within(state: _State, tolerance: float, *, share: float = 1.0) -> Tensor:
    gap = _gap(state.gradient, state.problems.penalty)
    enough = gap <= share * tolerance * (1 + state.value.abs())
    return enough & (_largest(state.gradient) <= share * state.allowed)


def _solutions(problems: Problems, theta: Tensor, margins: Tensor, steps: int) -> Solutions:
    state = _state(problems, theta, margins, problems.z.new_zeros(len(theta)), ())
    gap, slope = _gap(state.gradient, problems.penalty), _largest(state.gradient)
    return Solutions(theta[..., :-1], theta[..., -1], margins, state.value, gap, slope, steps)


def _at_flat_bias(state: _State) -> _State:
    shift = _profiled(state.problems, state.margins)
    theta = torch.cat([state.theta[..., :-1], state.theta[..., -1:] + shift], dim=-1)
    return _state(state.problems, theta, state.margins + shift, state.allowed, ())


def _is_flat(
    problems: Problems, slope: Float[Tensor, "problem column"]
) -> Bool[Tensor, " problem"]:
    """Where nothing but rounding is left of the slope along the bias."""
    return slope.abs().amax(1) <= _rounding(problems) * problems.counted.sum(1)


def _profiled(problems: Problems, margins: Tensor) -> Float[Tensor, "problem column 1"]:
    """What to add to each bias so that the loss is flat along it."""
    shift = torch.zeros_like(margins[..., :1])
    for _ in range(BIAS_STEPS):
        p, residual = _residual(problems, margins + shift)
        slope = residual.sum(-1)  # problem column
        if bool(_is_flat(problems, slope).all()):
            break
        counted = p * problems.counted[:, None]
        if problems.n_columns == 1:
            step = slope / (counted * (1 - p)).sum(-1)
        else:  # softmax ignores a common shift: the constant makes the matrix regular
            outer = torch.einsum("pcn,pkn->pck", counted, p)
            hessian = torch.diag_embed(counted.sum(-1)) - outer + 1
            step = torch.linalg.solve(hessian, slope)
        shift = shift - step[..., None]
    return shift


def _gap(gradient: Tensor, penalty: Tensor) -> Float[Tensor, " problem"]:
    return gradient[..., :-1].square().sum((1, 2)) / (2 * penalty)


def _rounding(problems: Problems) -> float:
    return ROUNDING * torch.finfo(problems.z.dtype).eps


def _dot(one: Tensor, other: Tensor) -> Float[Tensor, " problem"]:
    return (one * other).sum((1, 2))


def _largest(gradient: Tensor) -> Float[Tensor, " problem"]:
    return gradient.abs().amax((1, 2))


def _refuse(state: _State, steps: int) -> NoReturn:
    gap = float(_gap(state.gradient, state.problems.penalty).max())
    penalty = float(state.problems.penalty.min())
    raise ConvergenceError(
        f"{len(state.value)} logistic fits have not converged after {steps} steps: duality gap "
        f"{gap:.1e}, smallest penalty {penalty:.1e}. Try a larger penalty or check the rows' scale."
    )
