import numpy as np
import pytest

from kdcli.errors import InputError
from kdcli.metrics.on_policy import SampledTokenStats
from kdcli.metrics.speculative import Speculative, tokens_per_call

FACTS = {
    "accepted": np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
    "total_variation": np.array([0.1, 0.3, 0.2, 0.4, 0.5, 0.3]),
    "opens": np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
    "emitted": np.array([3.0, 0.0, 1.0, 2.0, 0.0, 1.0]),
}
OWN = SampledTokenStats(
    FACTS, np.array([0, 0, 0, 1, 1, 1]), np.zeros(6, dtype=np.int64), np.array([0, 1, 3, 0, 1, 2]), 2, 1, 4
)


def test_scores_are_ratios_over_tests_and_calls():
    scores = {score.name: score.value for score in Speculative(draft_tokens=2).scores_from_own({"speculative": OWN})}
    assert scores == pytest.approx(
        {
            "spec_acceptance": 400 / 6,
            "spec_expected": 70.0,
            "spec_accepted_length": 1.0,
            "spec_tokens_per_call": 7 / 4,
            "spec_expected_tokens": 1 + 0.7 + 0.49,
        }
    )


def test_measured_and_expected_acceptance_by_position():
    (curve,) = Speculative().curves({"speculative": OWN})
    measured, expected = curve.series
    assert measured.y == (100.0, 50.0, 100.0, 0.0)
    assert expected.y == pytest.approx((75.0, 60.0, 70.0, 80.0))
    assert measured.count == (2.0, 2.0, 1.0, 1.0)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_tokens_per_call_is_equation_one(rate):
    closed = (1 - rate**5) / (1 - rate)
    assert float(tokens_per_call(np.array([rate, 1.0]), 4)) == pytest.approx(closed)
    assert float(tokens_per_call(np.array([1.0, 1.0]), 4)) == 5.0


def test_it_drafts_at_least_one_token():
    with pytest.raises(InputError, match="at least 1"):
        Speculative(draft_tokens=0)
