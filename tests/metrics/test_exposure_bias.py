import itertools

import numpy as np
import pytest

import chains
from kdcli.errors import InputError
from kdcli.metrics.exposure_bias import ExposureBias, excess
from kdcli.metrics.on_policy import SampledTokenStats
from kdcli.statistics import over_examples

LENGTH = 5


def every_sequence(sampled_by, count: int = 10**LENGTH) -> SampledTokenStats:
    """All sequences of a golden chain, each as often as its probability says: whole numbers of 100,000."""
    values, positions, examples = [], [], []
    number = 0
    for tokens in itertools.product((chains.A, chains.B), repeat=LENGTH):
        history = (chains.START, *tokens)
        mass = np.prod([sampled_by[last][token] for last, token in itertools.pairwise(history)])
        times = round(count * mass)
        assert times == pytest.approx(count * mass, abs=1e-6)
        errors = [chains.kl(chains.GOLDEN_TEACHER[last], chains.GOLDEN_STUDENT[last]) for last in history[:-1]]
        values.append(np.tile(errors, times))
        positions.append(np.tile(np.arange(LENGTH), times))
        examples.append(np.repeat(np.arange(number, number + times), LENGTH))
        number += times
    assert number == count
    example = np.concatenate(examples)
    facts = {"kl_from_teacher": np.concatenate(values)}
    return SampledTokenStats(facts, example, np.zeros_like(example), np.concatenate(positions), number, 1, LENGTH)


@pytest.fixture(scope="module")
def exact():
    return {"student": every_sequence(chains.GOLDEN_STUDENT), "teacher": every_sequence(chains.GOLDEN_TEACHER)}


def test_the_chain_by_hand_is_the_golden_one():
    student = chains.accumulated(chains.GOLDEN_STUDENT, chains.GOLDEN_TEACHER, chains.GOLDEN_STUDENT, LENGTH)
    teacher = chains.accumulated(chains.GOLDEN_TEACHER, chains.GOLDEN_TEACHER, chains.GOLDEN_STUDENT, LENGTH)
    np.testing.assert_allclose(student, chains.GOLDEN_R, atol=5e-9)
    np.testing.assert_allclose(teacher, chains.GOLDEN_L_EPS, atol=5e-9)


def test_all_sequences_in_their_proportions_give_the_closed_form(exact):
    scores = ExposureBias(exposure_lengths=(1, 2, 3, 4, 5)).scores_from_own(exact)
    assert [score.name for score in scores] == ["ex_acc_err", *(f"ex_acc_err_{length}" for length in range(1, 6))]
    assert [score.value for score in scores[1:]] == pytest.approx(list(chains.GOLDEN_EXCESS), abs=1e-5)
    assert scores[0].value == scores[5].value


def test_the_curves_are_the_scores_at_every_length(exact):
    excess_curve, errors = ExposureBias().curves(exact)
    assert excess_curve.series[0].x == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert excess_curve.series[0].y == pytest.approx(list(chains.GOLDEN_EXCESS), abs=1e-5)
    assert errors.series[0].y == pytest.approx(list(chains.GOLDEN_R), abs=5e-9)
    assert errors.series[1].y == pytest.approx(list(chains.GOLDEN_L_EPS), abs=5e-9)


def some(rows: list[list[list[float]]], length: int = 4) -> SampledTokenStats:
    """Facts from ``[example][answer][position]``."""
    flat = [
        (value, e, a, t)
        for e, answers in enumerate(rows)
        for a, answer in enumerate(answers)
        for t, value in enumerate(answer)
    ]
    value, example, answer, position = (np.array(column) for column in zip(*flat, strict=True))
    return SampledTokenStats({"kl_from_teacher": value}, example, answer, position, len(rows), len(rows[0]), length)


SAMPLES = {
    "student": some([[[1.0, 2.0], [4.0]], [[2.0, 2.0, 2.0], [1.0, 1.0]], [[3.0], [1.0]]]),
    "teacher": some([[[1.0], [1.0, 1.0]], [[2.0, 1.0], [2.0]], [[1.0, 1.0, 1.0, 1.0], [2.0]]]),
}


def test_answers_are_averaged_then_examples_summed_and_ended_answers_add_nothing():
    whole, two = ExposureBias(exposure_lengths=(2,)).scores_from_own(SAMPLES)
    ours, theirs = (3 + 4) / 2 + (6 + 2) / 2 + (3 + 1) / 2, (1 + 2) / 2 + (3 + 2) / 2 + (4 + 2) / 2
    assert whole.value == pytest.approx(100 * (ours - theirs) / theirs)
    assert two.value == pytest.approx(100 * (8.5 - 6.0) / 6.0)
    assert whole.answers.mean(1).tolist() == whole.sums.tolist()
    assert whole.answers[0].tolist() == [[3.0, 1.0], [4.0, 2.0]]


def test_the_first_token_counts():
    only = {side: some([[[value]], [[value]]]) for side, value in (("student", 3.0), ("teacher", 2.0))}
    assert ExposureBias().scores_from_own(only)[0].value == pytest.approx(50.0)


def test_the_interval_is_the_jackknife_over_examples_and_the_band_is_the_same():
    score = ExposureBias().scores_from_own(SAMPLES)[0]
    sums = score.sums
    left_out = np.array([float(excess(np.delete(sums, i, 0).sum(0))) for i in range(3)])
    error = np.sqrt(2 / 3 * ((left_out - left_out.mean()) ** 2).sum())
    found = over_examples(score)
    assert found.error == pytest.approx(error)
    band = ExposureBias().curves(SAMPLES)[0].series[0]
    assert (band.low[-1], band.high[-1]) == pytest.approx((found.low, found.high))


def test_a_student_that_is_the_teacher_has_no_exposure_bias():
    nothing = {side: some([[[0.0, 0.0]], [[0.0]]]) for side in ("student", "teacher")}
    assert ExposureBias().scores_from_own(nothing)[0].value == 0.0


def test_a_teacher_without_errors_makes_it_infinite():
    samples = {"student": some([[[1.0]]]), "teacher": some([[[0.0]]])}
    assert ExposureBias().scores_from_own(samples)[0].value == np.inf


@pytest.mark.parametrize("length", [0, 5])
def test_a_length_no_answer_has_is_refused(length):
    with pytest.raises(InputError, match="answers have 1 to 4 tokens"):
        ExposureBias(exposure_lengths=(length,)).scores_from_own(SAMPLES)


def test_lengths_are_part_of_the_signature():
    assert ExposureBias().signature.startswith("exposure_bias|kl:")
    assert ExposureBias(exposure_lengths=(8, 32)).signature.startswith("exposure_bias|exposure_lengths:8,32|kl:")
