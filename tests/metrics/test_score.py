import random

import numpy as np
import pytest

from kdcli.metrics.score import Score, add_up, mean_and_count, ratio, total


def test_the_value_is_the_same_to_the_last_bit_in_any_order_of_examples():
    generator = random.Random(0)
    rows = [[generator.uniform(-1, 1) * 10.0 ** generator.randint(-12, 12), 1.0] for _ in range(500)]
    values = set()
    for _ in range(10):
        generator.shuffle(rows)
        values.add(Score("s", np.array(rows), ratio(), "lower").value)
    assert len(values) == 1


def test_duplicating_every_example_keeps_the_mean():
    sums = np.random.default_rng(0).random((37, 2))
    once, twice = (Score("s", part, ratio(100.0), "lower").value for part in (sums, np.concatenate([sums, sums])))
    assert twice == pytest.approx(once, rel=1e-15)


def test_token_sums_equal_a_loop_over_tokens():
    draw = np.random.default_rng(1)
    values, example = draw.normal(size=(50, 3)), draw.integers(0, 7, 50)
    expected = np.zeros((9, 3))
    for row, index in zip(values, example, strict=True):
        expected[index] += row
    np.testing.assert_allclose(add_up(values, example, 9), expected, rtol=0, atol=1e-14)


def test_an_example_without_tokens_has_no_value_and_does_not_change_the_mean():
    sums = mean_and_count(np.array([2.0, 4.0]), np.array([0, 2]), 3)
    score = Score("s", sums, ratio(), "lower")
    assert score.value == 3.0
    np.testing.assert_array_equal(score.per_example, [2.0, np.nan, 4.0])


def test_a_corpus_score_has_a_value_but_none_per_example():
    score = Score("s", None, ratio(), "higher", corpus=0.25)
    assert score.value == 0.25
    assert score.per_example is None


def test_total_of_one_column():
    assert total(np.array([[0.1]] * 10)).tolist() == [1.0]
