import numpy as np
import pytest
import torch

from kdcli.generation.sampling import BLOCK, blocks, exponential_noise, greedy, sample, stream

torch.set_num_threads(1)


def times(count, ids, seed=0):
    return torch.from_numpy(exponential_noise([stream(seed, example) for example in range(count)], ids))


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("ids", [4, 700])
def test_samples_follow_the_distribution_at_a_temperature(ids, tau):
    logits = torch.randn(ids, generator=torch.Generator().manual_seed(1)) * 2.0
    picked = sample(logits.expand(20_000, ids), times(20_000, ids), temperature=tau).tokens
    shares = torch.bincount(picked, minlength=ids).double() / len(picked)
    truth = torch.softmax(logits.double() / tau, -1)
    often = truth * len(picked) > 10
    off = (shares - truth)[often] / (truth * (1.0 - truth) / len(picked)).sqrt()[often]
    assert off.abs().max() < 4.5
    assert off.square().mean() < (3.0 if ids < 10 else 1.3)


def test_the_race_by_hand():
    mass = torch.zeros(BLOCK + 2)
    mass[[1, 3, BLOCK]] = torch.tensor([0.1, 0.3, 0.6])
    clocks = torch.full((1, BLOCK + 2), 9.0, dtype=torch.float64)
    clocks[0, BLOCK:] = torch.tensor([0.4, 0.7])  # blocks of mass 0.4 and 0.6 arrive at 1.0 and 1.17
    clocks[0, [1, 3]] = torch.tensor([0.1, 0.31], dtype=torch.float64)  # tokens arrive at 1.0 and 1.03
    assert sample(mass.log()[None], clocks, temperature=1.0).tokens.tolist() == [1]
    clocks[0, BLOCK] = 0.5
    assert sample(mass.log()[None], clocks, temperature=1.0).tokens.tolist() == [BLOCK]


def test_tokens_without_mass_are_never_drawn():
    logits = torch.full((500, 300), -float("inf"))
    logits[:, [7, 280]] = 0.0
    picks = sample(logits, times(500, 300), temperature=1.0, tolerance=torch.full((500,), 1e-4))
    assert set(picks.tokens.tolist()) == {7, 280}


@pytest.mark.parametrize("top_p, kept", [(0.39, {3}), (0.41, {3, 2}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})])
@pytest.mark.parametrize("tolerance", [None, 1e-5])
def test_the_nucleus_is_the_smallest_set_with_enough_mass(top_p, kept, tolerance):
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(2000, 4)
    off = None if tolerance is None else torch.full((2000,), tolerance)
    picks = sample(logits, times(2000, 4), temperature=1.0, top_p=top_p, tolerance=off)
    assert set(picks.tokens.tolist()) == kept
    assert picks.sure.double().mean() > 0.99


def test_a_wide_nucleus_needs_more_than_the_likeliest_tokens():
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 0.01
    picked = sample(logits.expand(4000, 3000), times(4000, 3000), temperature=1.0, top_p=0.9).tokens
    cut = logits.sort(descending=True).indices[2710:]
    assert not set(picked.tolist()) & set(cut.tolist())
    assert len(set(picked.tolist())) > 1900


def test_a_tiny_temperature_is_greedy():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits, times(50, 20), temperature=1e-5).tokens, logits.argmax(-1))


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("tau", [0.7, 1.0])
def test_what_is_sure_stays_whatever_the_rounding(top_p, spread, tau):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3000, 600, generator=generator) * spread
    clocks, off = times(3000, 600), torch.full((3000,), 2e-3)
    picks = sample(logits, clocks, temperature=tau, top_p=top_p, tolerance=off)
    moved = 0
    for _ in range(4):
        noisy = logits + (torch.rand(logits.shape, generator=generator) * 2.0 - 1.0) * 2e-3
        other = sample(noisy, clocks, temperature=tau, top_p=top_p).tokens
        assert torch.equal(other[picks.sure], picks.tokens[picks.sure])
        moved += (other != picks.tokens).sum().item()
    assert moved > 0, "the noise must matter somewhere"
    assert picks.sure.double().mean() > 0.9


def test_ties_of_the_likeliest_are_not_sure():
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0 - 1e-3, 0.0], [2.0, 1.0, 0.0]])
    picks = greedy(logits, torch.full((3,), 1e-4))
    assert picks.tokens.tolist()[1:] == [0, 0]
    assert picks.sure.tolist() == [False, True, True]


def test_draws_follow_from_seed_example_and_step_alone():
    one, other = stream(3, 8), stream(3, 8)
    first = [exponential_noise([one], 1000) for _ in range(3)]
    together = [exponential_noise([stream(5, 1), other], 1000)[1] for _ in range(3)]
    assert np.array_equal(np.concatenate(first), np.stack(together))
    assert not np.array_equal(first[0], first[1])
    assert exponential_noise([stream(4, 8)], 1000)[0, 0] != first[0][0, 0]
    many = exponential_noise([stream(0, example) for example in range(300)], 1000)
    assert many.shape == (300, BLOCK + blocks(1000))
    assert (many > 0.0).all()
    assert abs(many.mean() - 1.0) < 0.02
    assert abs((many > 2.0).mean() - np.exp(-2.0)) < 0.005


def test_real_ids_draw_the_same_whether_the_head_has_padding_rows_or_not():
    clocks = exponential_noise([stream(0, 0)], 500)
    assert np.array_equal(exponential_noise([stream(0, 0)], 700)[:, : BLOCK + 2], clocks[:, : BLOCK + 2])


def test_greedy_is_sure_where_both_logits_may_move_towards_each_other():
    """Of logits 1 apart the first stays the larger one as long as neither moves by a half."""
    logits, off = torch.tensor([[1.0, 0.0, -9.0]]).expand(4, 3), torch.tensor([0.25, 0.49, 0.51, 0.9])
    assert greedy(logits, off).sure.tolist() == [True, True, False, False]


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-30])
def test_the_coldest_temperatures_draw_the_likeliest_token(temperature):
    logits = torch.tensor([[0.5, 3.0, -1.0, 2.9], [1.0, 0.0, float("-inf"), 0.9]])
    assert sample(logits, times(2, 4), temperature=temperature).tokens.tolist() == [1, 0]
