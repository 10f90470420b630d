import numpy as np
import pytest

from kdcli.metrics.curve import mean_with_interval
from kdcli.metrics.score import Score, ratio
from kdcli.statistics import over_examples


def test_every_point_is_the_score_with_its_interval():
    draw = np.random.default_rng(1)
    sums = np.stack([draw.normal(size=(9, 5)), draw.integers(0, 3, (9, 5))], axis=-1)
    sums[..., 0] *= sums[..., 1] > 0
    line = mean_with_interval("a", range(5), sums, ratio(100.0), count=sums[..., 1].sum(0))
    for point in range(5):
        estimate = over_examples(Score("a", sums[:, point], ratio(100.0), "lower"))
        assert (line.y[point], line.low[point], line.high[point]) == pytest.approx(
            (estimate.mean, estimate.low, estimate.high)
        )
    assert line.count == tuple(sums[..., 1].sum(0))


def test_one_example_has_no_interval_and_none_has_no_value():
    sums = np.array([[[2.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    line = mean_with_interval("a", [1, 2], sums, ratio())
    assert line.y[0] == 2.0
    assert np.isnan([line.low[0], line.high[0], line.y[1], line.low[1]]).all()
