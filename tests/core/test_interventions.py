"""An intervention is frozen data, checked as far as it can be without a model."""

import dataclasses

import pytest
import torch

import workbench as wb
from workbench.core import operators as ops
from workbench.core.errors import (
    EmptySelectionError,
    OptionError,
    UnknownNameError,
)
from workbench.core.interventions import Intervention
from workbench.core.operators import Function
from workbench.core.place import At, Everywhere
from workbench.core.sites import Site

Z = "blocks.5.attn.hook_z"


def test_it_holds_what_it_was_given() -> None:
    one = Intervention(
        [Z, Site("hook_embed")],
        ops.zero(),
        positions=[-1],
        heads=[3],
        rows=[0, 2],
        neurons=[7],
        strength=2.0,
        unit="gap",
        unit_size=0.25,
        optional=True,
        label="cut",
    )
    assert one.sites == (Z, "hook_embed")
    assert (one.positions, one.heads, one.rows, one.neurons) == (At((-1,)), (3,), (0, 2), (7,))
    assert (one.strength, one.unit, one.unit_size, one.size) == (2.0, "gap", 0.25, 0.5)
    assert one.optional
    assert one.label == str(one) == "cut"
    assert one.replayable


def test_the_defaults_are_the_whole_change_everywhere() -> None:
    one = Intervention(Z, ops.zero())
    assert (one.positions, one.heads, one.rows, one.neurons) == (Everywhere(), None, None, None)
    assert one.size == 1
    assert not one.optional


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Intervention(Z, ops.zero()).strength = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_one_index_is_a_list_of_one() -> None:
    assert Intervention(Z, ops.zero(), heads=3, rows=0).heads == (3,)


def test_a_bare_function_works_and_marks_it() -> None:
    one = Intervention(Z, torch.sin)
    assert isinstance(one.operator, Function)
    assert not one.replayable
    assert not wb.Plan((one,)).replayable


def test_on_rows_changes_the_rows_alone() -> None:
    one = Intervention(Z, ops.zero(), heads=[1], positions=2, strength=0.5, label="x", unit="gap")
    other = one.on_rows([4, 5])
    assert other.rows == (4, 5)
    for field in dataclasses.fields(one):
        if field.name != "rows":
            assert vars(other)[field.name] == vars(one)[field.name], field.name
    assert one.on_rows([1], optional=True).optional
    assert not one.on_rows([1]).optional


@pytest.mark.parametrize("name", ["heads", "rows", "neurons"])
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([], EmptySelectionError, "is empty; leave it out"),
        ([-1], OptionError, "must be indices from 0 up"),
        ([1, 1], OptionError, "must be indices that differ"),
    ],
)
def test_indices_are_checked(
    name: str, values: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"{name} {message}"):
        Intervention(Z, ops.zero(), **{name: values})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_must_be_finite(size: float) -> None:
    with pytest.raises(OptionError, match="must be a finite number"):
        Intervention(Z, ops.zero(), strength=size)
    with pytest.raises(OptionError, match="must be a finite number"):
        Intervention(Z, ops.zero(), unit_size=size)


def test_two_finite_numbers_whose_product_is_not_are_refused() -> None:
    with pytest.raises(OptionError, match="must be a finite number"):
        Intervention(Z, ops.zero(), strength=1e200, unit_size=1e200)


def test_a_name_that_no_site_has_is_refused_at_once() -> None:
    with pytest.raises(UnknownNameError, match=r"blocks\.5\.attn\.hook_z"):
        Intervention("blocks.5.attn.z", ops.zero())
    with pytest.raises(EmptySelectionError, match="at least one site"):
        Intervention([], ops.zero())


def test_it_says_what_it_does_and_where() -> None:
    shown = str(Intervention(Z, ops.zero(), heads=[3], rows=[0], neurons=[1, 2], positions=-1))
    assert shown.startswith(f"zero at {Z} (head 3; row 0; neuron 1, 2; positions ")
    assert str(Intervention("blocks.*.hook_mlp_out", ops.scale(2.0))) == (
        "scale at blocks.*.hook_mlp_out"
    )
