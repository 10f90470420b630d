import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.data.batching import epoch_steps, micro_batches

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=80)


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 9),
    window=st.integers(1, 5),
)
def test_each_example_comes_once_and_only_the_last_step_is_short(lengths, batch, seed, epoch, window):
    steps = epoch_steps(lengths, batch, seed=seed, epoch=epoch, window=window)
    assert sorted(index for step in steps for index in step) == list(range(len(lengths)))
    assert all(len(step) == batch for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= batch
    assert steps == epoch_steps(lengths, batch, seed=seed, epoch=epoch, window=window)


def test_seed_and_epoch_change_the_order_and_a_window_is_cut_by_length():
    lengths = [1 + i % 7 for i in range(64)]
    orders = {
        (seed, epoch): epoch_steps(lengths, 4, seed=seed, epoch=epoch, window=4) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len({str(order) for order in orders.values()}) == 4
    small = epoch_steps(lengths[:16], 4, seed=0, epoch=0, window=4)
    assert sorted(sorted(lengths[index] for index in step) for step in small) == [
        [1, 1, 1, 2],
        [2, 2, 3, 3],
        [4, 4, 5, 5],
        [6, 6, 7, 7],
    ]


def test_order_is_fixed_for_good():
    assert epoch_steps([5, 3, 8, 1, 9, 2, 7, 4], 3, seed=7, epoch=2, window=2) == [
        [1, 5, 3],
        [4, 2, 0],
        [7, 6],
    ]


def test_every_example_is_equally_likely_to_come_first_and_in_the_short_step():
    lengths = list(range(1, 11))
    first, short = Counter(), Counter()
    for seed in range(2000):
        steps = epoch_steps(lengths, 3, seed=seed, epoch=0, window=2)
        first.update(steps[0])
        short.update(steps[-1])
    assert len(first) == len(short) == 10
    assert all(abs(count - 600) < 120 for count in first.values())
    assert all(abs(count - 200) < 70 for count in short.values())


def padded(steps, lengths) -> int:
    return sum(len(step) * max(lengths[index] for index in step) for step in steps)


def test_sorting_within_a_window_shrinks_padding():
    chance = random.Random(0)
    lengths = [int(chance.lognormvariate(4, 0.8)) + 2 for _ in range(600)]
    sizes = [padded(epoch_steps(lengths, 8, seed=0, epoch=0, window=window), lengths) for window in (1, 4, 16)]
    real = sum(lengths)
    assert sizes[0] > 2.2 * real
    assert sizes[1] < 1.7 * real
    assert sizes[2] < 1.25 * real


def test_length_says_nothing_about_when_a_step_comes():
    lengths = list(range(1, 161))
    later_is_longer = 0
    for seed in range(200):
        steps = epoch_steps(lengths, 8, seed=seed, epoch=0, window=20)
        later_is_longer += sum(map(sum, steps[10:])) > sum(map(sum, steps[:10]))
    assert 70 < later_is_longer < 130


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_micro_batches_hold_everything_within_the_budget(lengths, budget):
    indexes = list(range(len(lengths)))[::2]
    batches = micro_batches(indexes, lengths, budget)
    assert sorted(index for batch in batches for index in batch) == indexes
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(order, reverse=True)


def test_micro_batches_of_nothing():
    assert micro_batches([], [3], 10) == []
