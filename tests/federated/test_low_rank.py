"""Means of adapters: which of them are the mean of the updates."""

import pytest
import torch

from kdcli.errors import InputError
from kdcli.federated.low_rank import Pair, factorise, gap, mean_product, pairs_of, residual_numbers, squares
from kdcli.federated.server import weighted_mean

PAIR = Pair("m", "m.lora_A.weight", "m.lora_B.weight")
WEIGHTS = [3, 1, 5]


def adapters(*, frozen=False, rank=2, count=3):
    random = torch.Generator().manual_seed(0)
    first = torch.randn(rank, 6, generator=random)
    return [
        {
            PAIR.a: first if frozen else torch.randn(rank, 6, generator=random),
            PAIR.b: torch.randn(5, rank, generator=random),
        }
        for _ in range(count)
    ]


def gap_of(found):
    means = {name: weighted_mean([one[name] for one in found], WEIGHTS) for name in found[0]}
    return gap([squares(mean_product(found, PAIR, WEIGHTS), means[PAIR.a], means[PAIR.b])])


def test_the_gap_is_that_of_the_definition_and_nothing_where_a_is_frozen():
    found = adapters()
    shares = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
    b = torch.stack([one[PAIR.b].double() for one in found])
    a = torch.stack([one[PAIR.a].double() for one in found])
    mean = torch.einsum("k,kor,kri->oi", shares, b, a)
    product = torch.einsum("k,kor->or", shares, b) @ torch.einsum("k,kri->ri", shares, a)
    assert gap_of(found) == pytest.approx(float((mean - product).norm() / mean.norm()), rel=1e-12)
    assert gap_of(found) > 0.1
    assert gap_of(adapters(frozen=True)) < 1e-14
    assert gap_of([{name: value * 0 for name, value in one.items()} for one in found]) == 0


def test_the_residual_has_the_rank_that_is_charged():
    found = adapters(rank=1)
    means = {name: weighted_mean([one[name] for one in found], WEIGHTS) for name in found[0]}
    residual = mean_product(found, PAIR, WEIGHTS) - means[PAIR.b] @ means[PAIR.a]
    assert int(torch.linalg.matrix_rank(residual)) == 2
    assert residual_numbers(found, [PAIR]) == 2 * 1 * (5 + 6)
    assert residual_numbers(adapters(count=9), [PAIR]) == 5 * 6


def test_factors_give_back_a_product_of_their_rank():
    product = mean_product(adapters(), PAIR, WEIGHTS)
    for rank in (1, 2, 5):
        a, b = factorise(product, rank)
        assert (a.shape, b.shape) == ((rank, 6), (5, rank))
        lost = torch.linalg.svdvals(product)[rank:].norm()
        assert float((product - b @ a).norm()) == pytest.approx(float(lost), rel=1e-9, abs=1e-12)


def test_a_name_without_its_other_half_is_refused():
    with pytest.raises(InputError, match="is no half of a pair"):
        pairs_of([PAIR.a, PAIR.b, "m.lora_magnitude_vector"])
    with pytest.raises(InputError, match="is no half of a pair"):
        pairs_of([PAIR.a])
