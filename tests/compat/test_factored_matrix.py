"""FactoredMatrix: equal to the product it stands for, and to TransformerLens 2.18's."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.compat.standin import close, golden
from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.core.errors import OptionError, ShapeError

GOLD = golden("factored_matrix", "factored")
A, B = GOLD["a"], GOLD["b"]
ONE = FactoredMatrix(A, B)
F64 = torch.float64


def exact(*shape: int, seed: int = 0) -> Tensor:
    return tiny.normal(*shape, seed=seed, dtype=F64)


@cache
def ours() -> dict[str, Any]:
    """The golden operations, by our own class."""
    return {
        "AB": ONE.AB,
        "S": ONE.S,
        "norm": ONE.norm(),
        "even": ONE.make_even().AB,
        "collapse_l_gram": ONE.collapse_l().mT @ ONE.collapse_l(),
        "collapse_r_gram": ONE.collapse_r() @ ONE.collapse_r().mT,
        "usv": ONE.U @ torch.diag_embed(ONE.S) @ ONE.Vh.mT,
        "eigenvalues": FactoredMatrix(A, GOLD["square"]).eigenvalues.abs().sort(-1).values,
        "times_matrix": (ONE @ GOLD["matrix"]).AB,
        "times_vector": ONE @ GOLD["vector"],
        "vector_times": GOLD["left"] @ ONE,
        "times_factored": (ONE @ FactoredMatrix(B.mT, GOLD["square"])).AB,
        "scaled": (2 * ONE).AB,
        "corner": ONE.get_corner(2),
        "item": ONE[1, 2].AB,
        "row": ONE[1, :, 2].AB,
        "column": ONE[:, 1, :, 3].AB,
        "transposed": ONE.T.AB,
        "unsqueezed": ONE.unsqueeze(1).AB,
    }


GIVEN = {"a", "b", "square", "matrix", "vector", "left"}


@pytest.mark.parametrize("name", sorted(set(GOLD) - GIVEN))
def test_is_what_the_classic_gives(name: str) -> None:
    close(ours()[name], GOLD[name])


def test_singular_values_are_those_of_the_product() -> None:
    one = FactoredMatrix(exact(2, 9, 3), exact(2, 3, 7, seed=1))
    tiny.close(one.S, torch.linalg.svdvals(one.AB)[:, :3])
    u, s, v = one.svd()
    tiny.close(u @ torch.diag_embed(s) @ v.mT, one.AB)
    tiny.close(v.mT @ v, torch.eye(3, dtype=F64).expand(2, 3, 3))
    assert one.V is one.Vh


def test_a_middle_wider_than_the_ends_has_the_products_singular_values() -> None:
    one = FactoredMatrix(exact(3, 9), exact(9, 4, seed=1))
    tiny.close(one.S, torch.linalg.svdvals(one.AB))


def test_eigenvalues_are_those_of_the_product_but_for_zeros() -> None:
    one = FactoredMatrix(exact(6, 2), exact(2, 6, seed=1))
    whole = torch.linalg.eigvals(one.AB)
    largest = whole[whole.abs().sort(descending=True).indices[:2]]
    tiny.close(one.eigenvalues.abs().sort().values, largest.abs().sort().values)
    tiny.close(one.eigenvalues.sum().real, one.AB.trace())


@pytest.mark.parametrize("shapes", [((5, 2), (2, 3)), ((2, 5), (5, 3))])
def test_products_on_both_sides_are_those_of_matrices(shapes: tuple[tuple[int, ...], ...]) -> None:
    one = FactoredMatrix(exact(*shapes[0]), exact(*shapes[1], seed=1))
    left, right = exact(4, one.ldim, seed=2), exact(one.rdim, 6, seed=3)
    for product, formed in (
        (left @ one, left @ one.AB),
        (one @ right, one.AB @ right),
        (one @ FactoredMatrix(right, right.T), one.AB @ right @ right.T),
        (FactoredMatrix(left.T, left) @ one, left.T @ left @ one.AB),
    ):
        assert isinstance(product, FactoredMatrix)
        assert product.mdim <= max(one.mdim, right.shape[1])
        tiny.close(product.AB, formed)
    tiny.close(left[0] @ one, left[0] @ one.AB)
    tiny.close(one @ right[:, 0], one.AB @ right[:, 0])


def test_leading_dimensions_broadcast() -> None:
    one = FactoredMatrix(exact(2, 1, 5, 3), exact(4, 3, 5, seed=1))
    assert one.shape == (2, 4, 5, 5)
    assert one.ndim == 4
    assert (one.ldim, one.mdim, one.rdim) == (5, 3, 5)
    assert one.has_leading_dims
    tiny.close(one.BA, one.B @ one.A)


def test_a_negative_index_is_the_last_one() -> None:  # trap 25: [-1] was empty in 2.x
    one = FactoredMatrix(exact(3, 5, 2), exact(3, 2, 6, seed=1))
    tiny.close(one[-1].AB, one.AB[-1])
    tiny.close(one[:, -1].AB, one.AB[:, -1:])
    tiny.close(one[..., -1].AB, one.AB[..., -1:])
    tiny.close(one[1, -2, -1].AB, one.AB[1, -2:-1, -1:])
    assert FactoredMatrix(exact(5, 2), exact(2, 6))[-1].shape == (1, 6)


def test_indexing_is_that_of_the_product() -> None:
    one = FactoredMatrix(exact(2, 3, 5, 2), exact(2, 3, 2, 6, seed=1))
    mask = torch.tensor([[True, False, True], [False, True, False]])
    for index in (
        (slice(None), [0, 2]),
        (None, 1),
        (..., slice(1, 4), slice(None)),
        (0, ..., torch.tensor([1, 5])),
        (mask,),
        (torch.tensor([1, 0]), slice(None), slice(2, None, 2), slice(None, 3)),
    ):
        tiny.close(one[index].AB, one.AB[index])
    tiny.close(one[..., [1, 4], [0, 2, 3]].AB, one.AB[..., [1, 4], :][..., [0, 2, 3]])


def test_an_index_out_of_range_is_refused() -> None:
    one = FactoredMatrix(exact(3, 5, 2), exact(3, 2, 6, seed=1))
    for index in ((3,), (0, 5), (0, 0, -7)):
        with pytest.raises(IndexError):
            _ = one[index]
    with pytest.raises(OptionError, match="at most 3 dimensions"):
        _ = one[0, 0, 0, 0]
    with pytest.raises(OptionError, match="single ellipsis"):
        _ = one[..., 0, ...]


def test_half_precision_is_decomposed_in_single() -> None:
    one = FactoredMatrix(exact(4, 2).bfloat16(), exact(2, 4, seed=1).bfloat16())
    assert one.S.dtype == torch.float32
    assert one.AB.dtype == torch.bfloat16


def test_scaling_takes_one_number() -> None:
    one = FactoredMatrix(exact(2, 5, 3), exact(3, 4, seed=1))
    tiny.close((one * torch.tensor([[[3.0]]], dtype=F64)).AB, 3 * one.AB)
    with pytest.raises(ShapeError, match="one number"):
        _ = one * torch.ones(4, dtype=F64)


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(5, 3\) and \(4, 6\)"):
        FactoredMatrix(exact(5, 3), exact(4, 6))
    with pytest.raises(ShapeError, match="leading dimensions that broadcast"):
        FactoredMatrix(exact(2, 5, 3), exact(3, 3, 6))
    with pytest.raises(ShapeError, match="square product"):
        _ = FactoredMatrix(exact(5, 3), exact(3, 6)).BA
    with pytest.raises(ShapeError, match="a right matrix of 6 rows"):
        _ = FactoredMatrix(exact(5, 3), exact(3, 6)) @ exact(5, 6)


def test_it_says_what_it_is() -> None:
    assert repr(ONE) == "FactoredMatrix: Shape((2, 3, 6, 7)), Hidden Dim(4)"
    assert ONE.pair == (ONE.A, ONE.B)
