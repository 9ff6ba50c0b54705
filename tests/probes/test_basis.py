"""The rows' own coordinates, and the way back to raw ones."""

import pytest
import torch

from probes.basis import basis
from tests.probes.planted import labelled


@pytest.mark.parametrize(("n", "d"), [(60, 7), (5, 9)])
def test_raw_weights_give_the_margins_of_rotated_ones(n: int, d: int) -> None:
    x = labelled(n, d, 2)[0]
    own = basis(x)
    weight, bias = torch.randn(
        2, 3, 1, own.z.shape[1], generator=torch.Generator().manual_seed(1)
    ).double()
    raw, raw_bias = own.raw(weight, bias[..., 0])
    inside = own.z @ weight[:, 0].T + bias[:, 0, 0]
    torch.testing.assert_close(x @ raw[:, 0].T + raw_bias[:, 0], inside, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (5, 9)])
def test_coordinates_are_uncorrelated_and_keep_lengths(n: int, d: int) -> None:
    x = labelled(n, d, 2)[0]
    own = basis(x)
    gram = own.z.T @ own.z
    torch.testing.assert_close(gram, own.scale.diag(), atol=1e-9, rtol=1e-9)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(own.z.square().sum(1), standard.square().sum(1))
    assert own.z.shape[1] == min(d, n - 1)


def test_a_constant_coordinate_gets_no_weight() -> None:
    x = labelled(60, 4, 2)[0].float()
    x[:, 1] = 2500.1
    own = basis(x)
    assert own.z.shape[1] == 3
    raw, _ = own.raw(torch.ones(1, 1, 3).double(), torch.zeros(1, 1).double())
    assert float(raw[0, 0, 1]) == 0


@pytest.mark.parametrize(("n", "d"), [(60, 7), (5, 9)])
def test_rows_that_are_all_equal_have_no_direction(n: int, d: int) -> None:
    own = basis(torch.full((n, d), 2500.1))
    assert own.z.shape == (n, 0)
    raw, bias = own.raw(torch.zeros(1, 1, 0).double(), torch.full((1, 1), 0.5).double())
    assert torch.equal(raw, torch.zeros(1, 1, d).double())
    assert float(bias) == 0.5
