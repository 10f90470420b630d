import pytest
import torch

from kdcli.losses.groups import Groups
from kdcli.losses.minillm import reward_to_go, shifted, weights_before, whitened

SEQUENCES = [[0.5, -1.0, 2.0], [3.0], [1.0, 1.0, -2.0, 0.25]]


def flat():
    values = torch.tensor([value for row in SEQUENCES for value in row], dtype=torch.float64)
    sequence = torch.tensor([index * 2 for index, row in enumerate(SEQUENCES) for _ in row])
    return values, sequence


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95, 1.0])
def test_reward_to_go_is_the_sum_of_what_is_left_discounted_from_here(gamma):
    values, sequence = flat()
    laid = Groups.by(sequence)
    found = reward_to_go(values, laid, gamma)
    expected = [
        sum(gamma ** (later - t) * row[later] for later in range(t, len(row)))
        for row in SEQUENCES
        for t in range(len(row))
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_factors_weigh_every_later_reward_by_their_product():
    values, sequence = flat()
    laid = Groups.by(sequence)
    factors = 0.5 + torch.rand(len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = reward_to_go(values, laid, 0.9, factors)
    start, expected = 0, []
    for row in SEQUENCES:
        c = factors[start : start + len(row)].tolist()
        for t in range(len(row)):
            total, weight = 0.0, 1.0
            for later in range(t, len(row)):
                weight *= (0.9 * c[later]) if later > t else 1.0
                total += weight * row[later]
            expected.append(total)
        start += len(row)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_order_of_tokens_counts_within_a_sequence_only():
    values, sequence = flat()
    mixed = torch.tensor([3, 0, 4, 1, 5, 6, 2, 7])  # each sequence in its own order, interleaved
    one, two = Groups.by(sequence), Groups.by(sequence[mixed])
    whole = reward_to_go(values, one, 0.9)
    torch.testing.assert_close(reward_to_go(values[mixed], two, 0.9), whole[mixed], rtol=0, atol=0)


def test_a_long_discount_counts_from_the_token_and_does_not_underflow():
    found = reward_to_go(torch.ones(5000), Groups.by(torch.zeros(5000)), 0.5)
    assert found[-1] == 1.0
    torch.testing.assert_close(found[0], torch.tensor(2.0))


def test_what_lies_beyond_a_sequence_counts_for_nothing():
    values, sequence = flat()
    laid = Groups.by(sequence)
    assert laid.sizes.tolist() == [3, 3, 3, 1, 4, 4, 4, 4]
    assert laid.places.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert shifted(values, laid).tolist() == [-1.0, 2.0, 0.0, 0.0, 1.0, -2.0, 0.25, 0.0]
    alone = Groups.by(sequence[3:4])
    assert reward_to_go(values[3:4], alone, 0.9).tolist() == [3.0]
    torch.testing.assert_close(
        weights_before(values, laid),
        torch.tensor([0, 0.5, -0.5, 0, 0, 1, 2, 0], dtype=torch.float64).exp(),
    )


@pytest.mark.parametrize("odd", [torch.inf, -torch.inf, torch.nan])
def test_a_number_that_is_not_finite_stays_in_its_sequence(odd):
    values, sequence = flat()
    laid, spoilt, rest = Groups.by(sequence), values.index_fill(0, torch.tensor([3]), odd), sequence != 2
    for take in (lambda side: reward_to_go(side, laid, 0.9), lambda side: weights_before(side, laid)):
        torch.testing.assert_close(take(spoilt)[rest], take(values)[rest], rtol=0, atol=0)
    found = reward_to_go(values, laid, 0.9, spoilt)
    torch.testing.assert_close(found[rest], reward_to_go(values, laid, 0.9, values)[rest], rtol=0, atol=0)


def test_no_tokens_make_no_rows():
    laid = Groups.by(torch.zeros(0, dtype=torch.int64))
    assert reward_to_go(torch.zeros(0), laid, 1.0).tolist() == []


@pytest.mark.parametrize("padding", [0, 3])
def test_whitened_has_mean_0_and_variance_1_over_what_is_counted(padding):
    values, _ = flat()
    whole = torch.cat((values, values.new_zeros(padding)))
    expected = (whole - whole.mean()) / torch.sqrt(whole.var(correction=0) + 1e-8)
    torch.testing.assert_close(whitened(values, padding), expected[: len(values)])
