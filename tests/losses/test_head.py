"""The three ways to the head agree."""

import pytest
import torch

from kdcli.losses.divergences.akl import by_digits, by_looking, by_sorting, head_gap

WIDE = 12_345


@pytest.mark.parametrize("rule", ("paper", "official"))
@pytest.mark.parametrize("scale", (0.5, 2.0, 4.0, 8.0, 20.0))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("rounded", (False, True), ids=("", "ties"))
def test_all_ways_agree(rule, scale, dtype, rounded):
    torch.manual_seed(int(scale))
    logits = torch.randn(5, WIDE, dtype=dtype) * scale
    p = (logits.round() if rounded else logits).softmax(-1)
    gap = torch.rand_like(p) * p
    for mu in (0.1234, 0.5, 0.87):
        expected = by_sorting(p.double(), gap.double(), mu, rule)
        one = p.double().amax(-1)
        for way in (by_looking, by_digits):
            apart = (way(p, gap, mu, rule).double() - expected).abs()
            # in fp32 the head may end one token of the tail earlier or later
            assert (apart <= (2e-4 if dtype == torch.float32 else 1e-12) * expected + 1e-12 * one).all(), (
                apart / expected
            )


@pytest.mark.parametrize("rule", ("paper", "official"))
def test_ties_go_by_rising_index(rule):
    p = torch.full((1, WIDE), 0.2 / (WIDE - 8), dtype=torch.float64)
    places = [12_340, 7, 9_000, 64, 63, 4_097, 12_344, 300]
    p[0, places] = 0.1
    gap = torch.zeros_like(p)
    gap[0, places] = torch.tensor([2.0**place for place in range(8)], dtype=torch.float64)
    min_top_k = sorted(places)[: 4 if rule == "paper" else 3]
    expected = sum(2.0 ** places.index(place) for place in min_top_k)
    for way in (by_sorting, by_looking, by_digits):
        assert way(p, gap, 0.35, rule).item() == expected


def test_ends_of_the_mass():
    p = torch.tensor([[0.2, 0.5, 0.3]]).repeat(2, 1)
    for rule in ("paper", "official"):
        assert head_gap(p, p, 1.0, rule).tolist() == pytest.approx([1.0, 1.0])
        assert head_gap(p, p, 0.0, rule).tolist() == pytest.approx([0.5, 0.5])


def test_a_flat_vocabulary_and_no_rows():
    p = torch.full((1, 2**14), 2.0**-14)
    for rule in ("paper", "official"):
        assert head_gap(p, p, 0.5, rule).item() == 0.5
    assert head_gap(p[:0], p[:0], 0.5, "paper").shape == (0,)
