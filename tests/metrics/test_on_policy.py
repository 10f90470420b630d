import numpy as np
import pytest

from kdcli.errors import InputError, NumericsError
from kdcli.metrics.exposure_bias import ExposureBias
from kdcli.metrics.on_policy import OnPolicyDistance, OnPolicyKL, SampledTokenStats
from kdcli.metrics.score import ratio
from kdcli.statistics import over_examples

EXAMPLE = np.array([0, 0, 0, 1, 1, 1])
ANSWER = np.array([0, 0, 1, 0, 1, 1])
POSITION = np.array([0, 1, 0, 0, 0, 1])
VALUES = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def own(**changes) -> SampledTokenStats:
    facts = {"kl_from_teacher": VALUES, "kl_to_teacher": 2 * VALUES}
    fields = {"facts": facts, "example": EXAMPLE, "answer": ANSWER, "position": POSITION}
    return SampledTokenStats(**{**fields, "examples": 2, "answers": 2, "length": 3, **changes})


def test_values_are_added_within_each_answer_and_averaged_at_each_position():
    assert own().per_answer(VALUES).tolist() == [[3.0, 4.0], [8.0, 48.0]]
    assert own().per_position(VALUES).tolist() == [[2.5, 1.0, 0.0], [12.0, 16.0, 0.0]]


def test_a_mean_over_tokens_averages_answers_before_examples():
    score = own().mean_over_tokens("mean", VALUES, ratio(), "lower")
    assert score.value == pytest.approx(VALUES.sum() / 6)
    assert score.sums.tolist() == [[3.5, 1.5], [28.0, 1.5]]
    assert score.answers[1].tolist() == [[8.0, 1.0], [48.0, 2.0]]


def test_kl_along_own_answers_both_ways_and_by_position():
    scores = OnPolicyKL().scores_from_own({"student": own()})
    assert {score.name: score.value for score in scores} == pytest.approx(
        {"on_policy_kl_from_teacher": 10.5, "on_policy_kl_to_teacher": 21.0}
    )
    (curve,) = OnPolicyKL().curves({"student": own()})
    assert [line.y for line in curve.series] == [(7.25, 17.0), (14.5, 34.0)]
    assert curve.series[0].x == (1.0, 2.0)
    assert curve.series[0].count == (4.0, 2.0)


def test_the_band_by_position_is_the_interval_of_the_same_score():
    draw = np.random.default_rng(0)
    position, example = np.tile(np.arange(4), 20), np.repeat(np.arange(20), 4)
    kept = draw.random(80) < 0.8
    kept[position == 0] = True
    facts = {name: draw.exponential(size=int(kept.sum())) for name in ("kl_from_teacher", "kl_to_teacher")}
    none = np.zeros(int(kept.sum()), dtype=np.int64)
    whole = SampledTokenStats(facts, example[kept], none, position[kept], 20, 1, 4)
    line = OnPolicyKL().curves({"student": whole})[0].series[1]
    for step in range(4):
        there = whole.position == step
        part = {name: values[there] for name, values in facts.items()}
        alone = SampledTokenStats(part, whole.example[there], none[there], none[there], 20, 1, 1)
        estimate = over_examples(OnPolicyKL().scores_from_own({"student": alone})[1])
        assert (line.y[step], line.low[step], line.high[step]) == pytest.approx(
            (estimate.mean, estimate.low, estimate.high)
        )


def test_agreement_and_distances_along_own_answers():
    facts = {"agree": (VALUES > 3).astype(float), "jsd": VALUES / 100, "total_variation": VALUES / 64}
    scores = OnPolicyDistance().scores_from_own({"student": own(facts=facts)})
    assert {score.name: score.value for score in scores} == pytest.approx(
        {
            "on_policy_agreement": 400 / 6,
            "on_policy_jsd": 0.105,
            "on_policy_tvd": 63 / 384,
            "on_policy_acceptance": 100 - 6300 / 384,
        }
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"example": EXAMPLE - 1}, "6 example numbers, -1 to 0, for 6 tokens and 2"),
        ({"position": POSITION + 2}, "6 position numbers, 2 to 3, for 6 tokens and 3"),
        ({"answer": ANSWER[:-1]}, "5 answer numbers, 0 to 1, for 6 tokens and 2"),
        ({"facts": {"kl_from_teacher": VALUES}}, 'the token fact "kl_to_teacher" is missing'),
        ({"facts": {"kl_from_teacher": VALUES, "kl_to_teacher": VALUES[1:]}}, r"has shape \[5\], expected \[6\]"),
        ({"example": EXAMPLE[:0]}, "no sampled tokens"),
    ],
)
def test_what_does_not_fit_is_refused(changes, what):
    with pytest.raises(InputError, match=what) as caught:
        OnPolicyKL().scores_from_own({"student": own(**changes)})
    assert caught.value.exit_code == 3


def test_a_fact_that_is_not_a_number_is_refused():
    broken = {"kl_from_teacher": VALUES, "kl_to_teacher": np.where(VALUES == 4.0, np.nan, VALUES)}
    with pytest.raises(NumericsError, match='"kl_to_teacher" of token 2 is not a number'):
        OnPolicyKL().scores_from_own({"student": own(facts=broken)})


def test_a_missing_sampler_is_refused():
    with pytest.raises(InputError, match="the teacher's samples are missing"):
        ExposureBias().scores_from_own({"student": own()})


def test_a_teacher_is_needed_for_its_facts_and_for_its_samples():
    assert OnPolicyKL.needs_teacher()
    assert ExposureBias.needs_teacher()
