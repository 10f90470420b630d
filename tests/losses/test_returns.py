import pytest
import torch

from kdcli.losses.returns import Sequences, reward_to_go, shifted, weights_before, whitened

SEQUENCES = [[0.5, -1.0, 2.0], [3.0], [1.0, 1.0, -2.0, 0.25]]


def flat():
    values = torch.tensor([value for row in SEQUENCES for value in row], dtype=torch.float64)
    sequence = torch.tensor([index * 2 for index, row in enumerate(SEQUENCES) for _ in row])
    return values, sequence


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95, 1.0])
def test_reward_to_go_is_the_sum_of_what_is_left_discounted_from_here(gamma):
    values, sequence = flat()
    laid = Sequences(sequence)
    found = laid.gather(reward_to_go(laid.spread(values), gamma))
    expected = [
        sum(gamma ** (later - t) * row[later] for later in range(t, len(row)))
        for row in SEQUENCES
        for t in range(len(row))
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_factors_weigh_every_later_reward_by_their_product():
    values, sequence = flat()
    laid = Sequences(sequence)
    factors = 0.5 + torch.rand(len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = laid.gather(reward_to_go(laid.spread(values), 0.9, laid.spread(factors)))
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
    one, two = Sequences(sequence), Sequences(sequence[mixed])
    whole = one.gather(reward_to_go(one.spread(values), 0.9))
    torch.testing.assert_close(two.gather(reward_to_go(two.spread(values[mixed]), 0.9)), whole[mixed], rtol=0, atol=0)


def test_a_long_discount_counts_from_the_token_and_does_not_underflow():
    found = reward_to_go(torch.ones(1, 5000), 0.5)
    assert found[0, -1] == 1.0
    torch.testing.assert_close(found[0, 0], torch.tensor(2.0))


def test_what_lies_beyond_a_sequence_counts_for_nothing():
    values, sequence = flat()
    laid = Sequences(sequence)
    assert laid.lengths.tolist() == [3, 1, 4]
    assert laid.remaining().tolist() == [3, 2, 1, 1, 4, 3, 2, 1]
    assert laid.gather(shifted(laid.spread(values))).tolist() == [-1.0, 2.0, 0.0, 0.0, 1.0, -2.0, 0.25, 0.0]
    alone = Sequences(sequence[3:4])
    assert reward_to_go(alone.spread(values[3:4]), 0.9).tolist() == [[3.0]]
    torch.testing.assert_close(
        laid.gather(weights_before(laid.spread(values))),
        torch.tensor([0, 0.5, -0.5, 0, 0, 1, 2, 0], dtype=torch.float64).exp(),
    )


def test_no_tokens_make_no_rows():
    laid = Sequences(torch.zeros(0, dtype=torch.int64))
    assert laid.shape == (0, 0)
    assert laid.gather(reward_to_go(laid.spread(torch.zeros(0)), 1.0)).tolist() == []


@pytest.mark.parametrize("padding", [0, 3])
def test_whitened_has_mean_0_and_variance_1_over_what_is_counted(padding):
    values, _ = flat()
    whole = torch.cat((values, values.new_zeros(padding)))
    expected = (whole - whole.mean()) / torch.sqrt(whole.var(correction=0) + 1e-8)
    torch.testing.assert_close(whitened(values, padding), expected[: len(values)])
