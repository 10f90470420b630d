"""Falling order against a stable sort, with ties, zeros and every dtype."""

import pytest
import torch

from kdcli.losses.sorting import order_descending, sort_descending


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_entries_keep_their_order(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 40, (7, 3000), generator=generator).to(dtype) / 40
    expected = torch.sort(values, dim=-1, descending=True, stable=True)
    assert torch.equal(order_descending(values), expected.indices)
    assert torch.equal(sort_descending(values), expected.values)


def test_tiny_and_huge_numbers_are_told_apart():
    values = torch.tensor([[1e-45, 0.0, 3e38, 1e-38, torch.inf, 1.0, 1.0 + 2**-23]])
    assert order_descending(values).tolist() == [[4, 2, 6, 5, 3, 0, 1]]


def test_a_slice_that_does_not_lie_in_one_piece():
    values = torch.rand(4, 10)[:, ::2]
    assert torch.equal(values.gather(-1, order_descending(values)), sort_descending(values))


def test_nothing_to_sort_and_no_gradient():
    assert order_descending(torch.zeros(0, 5)).shape == sort_descending(torch.zeros(0, 5)).shape == (0, 5)
    assert not sort_descending(torch.rand(2, 3, requires_grad=True)).requires_grad
