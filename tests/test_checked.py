"""The checks of types and shapes that run with the tests."""

import dataclasses

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from checked import checked
from kdcli.losses.topk import bins_of


def test_the_losses_are_checked_by_it():
    assert jaxtyping.jaxtyped is checked
    with pytest.raises(BeartypeCallHintViolation, match="ids"):
        bins_of(torch.zeros(3, 5), torch.zeros(2, 1, dtype=torch.int64))


@checked(typechecker=None)
def product(left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    return left @ right if len(left) < 9 else right


def test_sizes_are_compared_across_arguments_and_with_the_result():
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(BeartypeCallHintViolation, match="right"):
        product(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        product(torch.ones(9, 3), torch.ones(3, 4))
    assert product(torch.ones(5, 6), torch.ones(6, 7)).shape == (5, 7)  # a call forgets the sizes of the last one


def test_types_are_checked_where_there_is_no_array():
    @checked(typechecker=None)
    def double(number: int, unit: str | None = None) -> int:
        return number * 2 if unit is None else unit

    @checked(typechecker=None)
    def half(number: float) -> float:
        return number / 2

    assert double(2) == 4
    assert half(3) == 1.5
    with pytest.raises(BeartypeCallHintViolation, match="number"):
        double("2")
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        double(2, "m")


def test_the_fields_of_a_dataclass_are_checked():
    @checked(typechecker=None)
    @dataclasses.dataclass
    class Pair:
        left: Float[Tensor, "rows"]
        right: Float[Tensor, "rows"]

    assert len(Pair(torch.ones(3), torch.ones(3)).left) == 3
    with pytest.raises(BeartypeCallHintViolation, match="right"):
        Pair(torch.ones(3), torch.ones(2))
