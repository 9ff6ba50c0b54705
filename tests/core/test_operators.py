"""Operators do what their formula says, at any strength, and never write into what they get."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from workbench.core import operators as ops
from workbench.core.errors import (
    FormatError,
    InPlaceEditError,
    NonFiniteError,
    NotReplayableError,
    OptionError,
    ShapeError,
)
from workbench.core.operands import aligned, check_like
from workbench.core.operators import Operator, operator_from
from workbench.core.sites import Site

POST, Z = Site("blocks.{}.hook_resid_post", 1), Site("blocks.{}.attn.hook_z", 1)
PATTERN = Site("blocks.{}.attn.hook_pattern", 0)
PLACE = tiny.batch([[1] * 4, [1] * 4], [4, 4]).place
X = tiny.normal(2, 4, 6, dtype=torch.float64)
V, W = tiny.normal(6, seed=1, dtype=torch.float64), tiny.normal(3, 6, seed=2, dtype=torch.float64)
MEAN = tiny.normal(6, seed=3, dtype=torch.float64)
Q = torch.linalg.qr(W.T).Q.T
STRENGTHS = st.floats(-3, 3)

FORMULAS: dict[str, tuple[Operator, Tensor]] = {
    "zero": (ops.zero(), torch.zeros_like(X)),
    "set": (ops.set(V), V.expand_as(X)),
    "mean": (ops.mean(MEAN), MEAN.expand_as(X)),
    "add": (ops.add(V), X + V),
    "scale": (ops.scale(-2.5), -2.5 * X),
    "project_out": (ops.project_out(W), X - X @ Q.T @ Q),
    "project_out one": (ops.project_out(V), X - (X @ V)[..., None] * V / (V @ V)),
    "project_out center": (ops.project_out(W, center=MEAN), X - (X - MEAN) @ Q.T @ Q),
    "function": (ops.function(torch.sin), X.sin()),
}
each = pytest.mark.parametrize(("operator", "target"), FORMULAS.values(), ids=FORMULAS)
replayable = pytest.mark.parametrize(
    "operator", [op for op, _ in FORMULAS.values() if op.name != "function"], ids=lambda op: op.name
)


@each
@given(strength=STRENGTHS)
def test_strength_blends_from_the_activation_to_the_formula(
    operator: Operator, target: Tensor, strength: float
) -> None:
    before = X.clone()
    got = operator(X, POST, PLACE, strength)
    torch.testing.assert_close(got, X + strength * (target - X), rtol=0, atol=1e-12)
    assert torch.equal(X, before)


@each
def test_strength_one_is_the_formula(operator: Operator, target: Tensor) -> None:
    torch.testing.assert_close(operator(X, POST, PLACE, 1.0), target, rtol=0, atol=1e-13)


def test_what_is_set_is_set_to_the_bit() -> None:
    value = tiny.normal(2, 4, 6)
    operand = tiny.normal(2, 4, 6, seed=9)
    assert tiny.same_bytes(ops.set(operand)(value, POST, PLACE, 1.0), operand)
    assert tiny.same_bytes(ops.zero()(value, POST, PLACE, 1.0), torch.zeros_like(value))


def test_a_projection_removes_the_span_and_nothing_else() -> None:
    out = ops.project_out(W)(X, POST, PLACE, 1.0)
    torch.testing.assert_close(out @ W.T, torch.zeros(2, 4, 3).double(), rtol=0, atol=1e-12)
    aside = tiny.normal(6, seed=8, dtype=torch.float64)
    aside = aside - aside @ Q.T @ Q
    torch.testing.assert_close(out @ aside, X @ aside, rtol=0, atol=1e-12)
    again = ops.project_out(W)(out, POST, PLACE, 1.0)
    torch.testing.assert_close(again, out, rtol=0, atol=1e-12)  # idempotent
    double = ops.project_out(W)(X, POST, PLACE, 2.0)  # a reflection keeps the norm
    torch.testing.assert_close(double.norm(dim=-1), X.norm(dim=-1), rtol=0, atol=1e-12)


def test_directions_that_repeat_one_another_count_once() -> None:
    twice = torch.stack([V, 2 * V, V + 1e-9 * W[0]])
    torch.testing.assert_close(
        ops.project_out(twice)(X, POST, PLACE, 1.0),
        ops.project_out(V)(X, POST, PLACE, 1.0),
        rtol=0,
        atol=1e-8,
    )
    assert ops.project_out(twice).basis.shape == (1, 6)


@given(a=STRENGTHS, b=STRENGTHS)
def test_adding_a_then_b_is_adding_their_sum(a: float, b: float) -> None:
    one_by_one = ops.add(V)(ops.add(V)(X, POST, PLACE, a), POST, PLACE, b)
    torch.testing.assert_close(one_by_one, ops.add(V)(X, POST, PLACE, a + b), rtol=0, atol=1e-12)


@replayable
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_operator_follows_the_activation_s_dtype(operator: Operator, dtype: torch.dtype) -> None:
    value = X.to(dtype)
    check_like(operator(value, POST, PLACE, 0.5), value, POST)


@replayable
def test_an_operator_is_made_again_from_its_parts(operator: Operator) -> None:
    again = operator_from(operator.name, operator.scalars(), operator.tensors())
    assert type(again) is type(operator)
    assert again.scalars() == operator.scalars()
    for name, tensor in operator.tensors().items():
        assert tiny.same_bytes(again.tensors()[name], tensor)


# --- operands -----------------------------------------------------------------------------------


def test_operands_are_broadcast_from_the_right() -> None:
    value = tiny.normal(2, 4, 3, 5)  # batch pos head d_head
    per_head = tiny.normal(3, 5, seed=4)
    assert torch.equal(ops.set(per_head)(value, Z, PLACE, 1.0), per_head.expand_as(value))
    scalar = torch.tensor(2.0)
    assert torch.equal(ops.set(scalar)(value, Z, PLACE, 1.0), torch.full_like(value, 2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_operand_along_positions_is_read_at_absolute_ones(side: str) -> None:
    batch = tiny.batch([[1] * 2, [1] * 4], [2, 4], side)
    operand = torch.arange(5.0)[:, None].expand(5, 6)  # pos d: the position itself
    got = aligned(operand, torch.zeros(2, 4, 6), POST, batch.place)
    assert batch.real is not None
    assert torch.equal(got[batch.real][:, 0], batch.positions[batch.real].float())


def test_an_operand_along_rows_and_positions_keeps_its_rows() -> None:
    batch = tiny.batch([[1] * 2, [1] * 4], [2, 4], "left")
    operand = (10 * torch.arange(2)[:, None] + torch.arange(4)).float()[..., None].expand(2, 4, 6)
    got = aligned(operand, torch.zeros(2, 4, 6), POST, batch.place)
    assert got[0, 2:, 0].tolist() == [0, 1]
    assert got[1, :, 0].tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("operand", "site", "shape", "message"),
    [
        ((7,), POST, (2, 4, 6), r"a tensor that fits \(2, 4, 6\) \(batch pos d_model\), got"),
        ((1, 1, 1, 6), POST, (2, 4, 6), "at most 3 axes, got 4"),
        ((3, 4, 6), POST, (2, 4, 6), r"fits \(2, 4, 6\)"),
        ((2, 6), POST, (2, 4, 6), "an operand of 4 positions or more, got 2"),
        ((2, 5), Z, (2, 4, 3, 5), r"fits \(2, 4, 3, 5\)"),
    ],
)
def test_an_operand_that_does_not_fit_says_what_would(
    operand: tuple[int, ...], site: Site, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ShapeError, match=f"{site}: expected .*{message}"):
        aligned(torch.zeros(operand), torch.zeros(shape), site, PLACE)


def test_an_operand_over_keys_needs_keys_at_their_positions() -> None:
    operand, value = torch.rand(1, 1, 4, 4), torch.zeros(2, 3, 4, 4)
    right = tiny.batch([[1] * 2, [1] * 4], [2, 4], "right").place
    left = tiny.batch([[1] * 2, [1] * 4], [2, 4], "left").place
    assert aligned(operand, value, PATTERN, right).shape == (2, 1, 4, 4)
    with pytest.raises(ShapeError, match="no pads on the left: keys are columns here"):
        aligned(operand, value, PATTERN, left)
    assert aligned(operand[..., :1], value, PATTERN, left).shape == (2, 1, 4, 1)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ops.set, ops.mean, ops.add, ops.project_out])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_operands_that_are_not_finite_are_refused(make: object, bad: float) -> None:
    assert callable(make)
    with pytest.raises(NonFiniteError, match="1 of 3 values are not finite"):
        make(torch.tensor([1.0, bad, 0.0]))


def test_a_factor_that_is_not_finite_is_refused() -> None:
    with pytest.raises(OptionError, match=r"ops\.scale"):
        ops.scale(float("nan"))


def test_directions_must_be_vectors_that_are_not_zero() -> None:
    with pytest.raises(OptionError, match="vectors that are not all zero"):
        ops.project_out(torch.zeros(2, 4))
    with tiny.unchecked(), pytest.raises(ShapeError, match=r"a center of shape \(4,\), got \(5,\)"):
        ops.project_out(torch.ones(4), center=torch.zeros(5))
    with pytest.raises(ShapeError, match=r"blocks.1.hook_resid_post: expected vectors of 6, got 4"):
        ops.project_out(torch.ones(4, dtype=torch.float64))(X, POST, PLACE, 1.0)


def test_a_function_must_be_callable() -> None:
    with tiny.unchecked(), pytest.raises(OptionError, match="function must be callable"):
        ops.function("sin")  # pyright: ignore[reportArgumentType]


def test_a_function_must_not_write_into_the_activation() -> None:
    with pytest.raises(InPlaceEditError, match=r"at blocks\.1\.hook_resid_post; return a copy"):
        ops.function(lambda x: x.mul_(2))(X.clone(), POST, PLACE, 1.0)


def test_a_write_that_torch_does_not_count_never_reaches_the_model() -> None:
    def sly(x: torch.Tensor) -> torch.Tensor:
        x.data.zero_()
        return x + 1

    given = X.clone()
    assert torch.equal(ops.function(sly)(given, POST, PLACE, 1.0), torch.ones_like(X))
    assert torch.equal(given, X)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: x[:, :1], r"\(2, 1, 6\)"),
        (lambda x: x.float(), r"\(2, 4, 6\), torch.float32"),
        (lambda x: x.sum(), r"\(\)"),
    ],
)
def test_a_function_must_return_a_tensor_like_the_activation(change: Any, got: str) -> None:
    with tiny.unchecked(), pytest.raises(ShapeError, match=f"got {got}"):
        ops.function(change)(X, POST, PLACE, 1.0)


def test_a_bare_function_cannot_be_taken_apart() -> None:
    for part in (ops.function(torch.sin).scalars, ops.function(torch.sin).tensors):
        with pytest.raises(NotReplayableError, match=r"use an operator of wb\.ops"):
            part()


def test_operators_from_nothing_known_are_format_errors() -> None:
    with pytest.raises(FormatError, match="No operator is called 'evil'; one of zero, set"):
        operator_from("evil", {}, {})
    with pytest.raises(FormatError, match="operator 'add' lacks 'operand'"):
        operator_from("add", {}, {})
    with pytest.raises(FormatError, match="operator 'scale' lacks 'factor'"):
        operator_from("scale", {}, {})
    with pytest.raises(FormatError, match="operator 'zero' has no 'factor'"):
        operator_from("zero", {"factor": 1.0}, {})


@pytest.mark.parametrize(
    ("basis", "center", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "a basis"),
        (torch.eye(3)[:2], torch.zeros(4), "a basis"),
        (torch.ones(4, 3), torch.zeros(3), "a basis"),
        (torch.ones(2, 3), torch.zeros(3), "orthonormal"),
    ],
)
def test_a_stored_projection_must_be_one(basis: Tensor, center: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator_from("project_out", {}, {"basis": basis, "center": center})


def test_an_operand_is_a_copy_that_its_maker_no_longer_changes() -> None:
    vector = torch.ones(6, dtype=torch.float64)
    made = [ops.add(vector), ops.set(vector), ops.mean(vector), ops.project_out(vector)]
    before = [operator(X, POST, PLACE, 1.0) for operator in made]
    vector.zero_()
    for operator, kept in zip(made, before, strict=True):
        assert torch.equal(operator(X, POST, PLACE, 1.0), kept)


def test_masked_scores_may_be_set_and_nothing_else_that_is_not_finite() -> None:
    scores = torch.zeros(1, 2, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    assert ops.set(scores).operand.isinf().any()
    assert ops.mean(scores).operand.isinf().any()
    for wrong in (float("inf"), float("nan")):
        with pytest.raises(NonFiniteError, match=r"ops\.set: 1 of 1"):
            ops.set(torch.tensor([wrong]))
    with pytest.raises(NonFiniteError, match=r"ops\.add"):
        ops.add(scores)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64])
def test_an_operand_is_of_a_dtype_that_models_have(dtype: torch.dtype) -> None:
    with pytest.raises(ShapeError, match="a tensor of floating point numbers"), tiny.unchecked():
        ops.add(torch.zeros(3).to(dtype))


def test_an_operator_that_was_not_called_is_refused_by_name() -> None:
    with (
        pytest.raises(OptionError, match=r"called: wb\.ops\.zero\(…\), got 'zero'"),
        tiny.unchecked(),
    ):
        ops.function(ops.zero)  # pyright: ignore[reportArgumentType]


def test_no_directions_cannot_be_projected_out() -> None:
    with pytest.raises(ShapeError, match=r"ops\.project_out"):
        ops.project_out(torch.ones(0, 6))
