import numpy as np
import pytest
import scipy.special
import scipy.stats

from kdcli.metrics.teacher_agreement import KLToTeacher

STUDENT, TEACHER = np.random.default_rng(8).normal(size=(2, 30, 7)) * 2


def test_both_directions_are_named_after_where_they_come_from():
    q, p = scipy.special.softmax(STUDENT, -1), scipy.special.softmax(TEACHER, -1)
    scores = KLToTeacher().compute(predictions=STUDENT, references=TEACHER)
    assert scores["kl_from_teacher"] == pytest.approx(scipy.stats.entropy(p, q, axis=-1).mean(), rel=1e-12)
    assert scores["kl_to_teacher"] == pytest.approx(scipy.stats.entropy(q, p, axis=-1).mean(), rel=1e-12)
    assert scores["kl_from_teacher"] != pytest.approx(scores["kl_to_teacher"], rel=1e-3)


def test_it_is_a_mean_over_tokens():
    facts = {"kl_from_teacher": np.array([1.0, 2.0, 6.0]), "kl_to_teacher": np.array([0.0, 0.0, 3.0])}
    scores = KLToTeacher().scores_from_tokens(facts, np.array([0, 0, 1]), 2)
    assert [score.value for score in scores] == [3.0, 1.0]
    assert scores[0].per_example.tolist() == [1.5, 6.0]
