import numpy as np
import pytest
import scipy.special

from kdcli.errors import InputError
from kdcli.metrics.calibration import Calibration
from kdcli.metrics.on_policy import OnPolicyCalibration, SampledTokenStats, expected_series
from kdcli.metrics.score import facts_from_logits, ratio
from kdcli.statistics import over_examples

TOKENS, VOCAB = 400, 6
DRAW = np.random.default_rng(5)
STUDENT, TEACHER = 2.0 * DRAW.normal(size=(2, TOKENS, VOCAB))
EXAMPLE = np.sort(DRAW.integers(0, 20, TOKENS))
ANSWER = DRAW.integers(0, 2, TOKENS)
Q, P = scipy.special.softmax(STUDENT, axis=1), scipy.special.softmax(TEACHER, axis=1)


def own(student=STUDENT, teacher=TEACHER, example=EXAMPLE, answer=ANSWER):
    facts = facts_from_logits(student, teacher=teacher)
    return SampledTokenStats(facts, example, answer, np.zeros_like(example), 20, 2, 5)


def values(**changes):
    return {score.name: score.value for score in OnPolicyCalibration().scores_from_own({"student": own(**changes)})}


def test_they_are_the_plain_formulas_bin_by_bin():
    gaps = 0.0
    for low in range(10):
        inside = [i for i in range(TOKENS) if low / 10 <= Q[i].max() < (low + 1) / 10]
        gaps += abs(sum(P[i, Q[i].argmax()] - Q[i].max() for i in inside))
    brier = sum(P[i, y] * ((Q[i] - np.eye(VOCAB)[y]) ** 2).sum() for i in range(TOKENS) for y in range(VOCAB))
    nll = -(P * np.log(Q)).sum()
    found = values()
    assert found["on_policy_ece"] == pytest.approx(gaps / TOKENS, abs=1e-12)
    assert found["on_policy_brier"] == pytest.approx(brier / TOKENS, abs=1e-12)
    assert found["on_policy_nll"] == pytest.approx(nll / TOKENS, abs=1e-12)


def test_by_hand_at_a_bin_edge():
    """Confidence 0.5 opens the sixth bin; the teacher gives 0.75 and 0.25 there, 0.1 one bin below."""
    facts = {"top1_prob": np.array([0.5, 0.5, 0.49]), "top1_by_teacher": np.array([0.75, 0.25, 0.1])}
    facts |= {"brier_by_teacher": np.array([0.5, 0.7, 0.3]), "nll_by_teacher": np.array([1.0, 2.0, 6.0])}
    first = np.zeros(3, dtype=np.int64)
    one = SampledTokenStats(facts, np.array([0, 1, 1]), np.array([0, 0, 1]), first, 2, 2, 1)
    found = {score.name: score.value for score in OnPolicyCalibration().scores_from_own({"student": one})}
    assert found == pytest.approx({"on_policy_ece": 0.39 / 3, "on_policy_brier": 0.5, "on_policy_nll": 3.0}, abs=1e-12)
    (picture,) = OnPolicyCalibration().curves({"student": one})
    (line,) = picture.series
    assert (line.left, line.right, line.y, line.count) == ((0.4, 0.5), (0.5, 0.6), (0.1, 0.5), (1.0, 2.0))


def test_labels_drawn_by_the_teacher_give_the_same_numbers_in_the_limit():
    """``ece`` with the teacher's samples for labels is this metric but for chance."""
    labels = np.array([DRAW.choice(VOCAB, size=400, p=row / row.sum()) for row in P])
    facts = facts_from_logits(np.repeat(STUDENT, 400, axis=0), labels.ravel())
    sampled = Calibration().scores_from_tokens(facts, np.repeat(EXAMPLE, 400), 20)
    found = values()
    for score in sampled:
        assert found[f"on_policy_{score.name}"] == pytest.approx(score.value, abs=0.006)


def test_a_student_that_is_its_teacher_is_calibrated():
    found = values(teacher=STUDENT)
    assert found["on_policy_ece"] == pytest.approx(0.0, abs=1e-15)
    assert found["on_policy_nll"] == pytest.approx(scipy.special.entr(Q).sum() / TOKENS, abs=1e-12)


def test_the_interval_is_over_examples_and_every_answer_is_kept():
    for score in OnPolicyCalibration().scores_from_own({"student": own()}):
        assert score.answers.shape[:2] == (20, 2)
        np.testing.assert_allclose(score.answers.mean(1), score.sums)
        estimate = over_examples(score)
        assert estimate.low < estimate.mean < estimate.high


def test_the_bars_have_the_jackknifes_interval():
    ece, *_ = OnPolicyCalibration().scores_from_own({"student": own()})
    sums = 2 * ece.sums
    line = expected_series("x", sums)
    assert sum(line.count) == TOKENS
    column = sums.reshape(20, 10, 3)[:, 7]
    kept = column[column[:, 0] > 0]
    left_out = [ratio()(np.delete(kept, i, axis=0).sum(0)[[2, 0]]) for i in range(len(kept))]
    error = np.sqrt((len(kept) - 1) / len(kept) * np.square(left_out - np.mean(left_out)).sum())
    place = line.left.index(0.7)
    for end in (line.low[place], line.high[place]):  # the score interval within 0 and 1
        apart = abs(line.y[place] - end) * np.sqrt(line.y[place] * (1 - line.y[place]) / (end * (1 - end)))
        assert apart == pytest.approx(error * scipy.special.stdtrit(len(kept) - 1, 0.975), rel=1e-9)


def test_bins_are_checked_and_a_teacher_is_needed():
    with pytest.raises(InputError, match="bins must be at least 1"):
        OnPolicyCalibration(bins=0)
    assert OnPolicyCalibration.needs_teacher()
