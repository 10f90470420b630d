import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special

from kdcli.metrics.teacher_agreement import TeacherDistance

STUDENT, TEACHER = np.random.default_rng(8).normal(size=(2, 30, 7)) * 2


def test_distances_are_those_of_scipy():
    q, p = scipy.special.softmax(STUDENT, -1), scipy.special.softmax(TEACHER, -1)
    scores = TeacherDistance().compute(predictions=STUDENT, references=TEACHER)
    root = scipy.spatial.distance.jensenshannon(p, q, axis=-1)
    assert scores["jsd_to_teacher"] == pytest.approx((root**2).mean(), rel=1e-12)
    tvd = 0.5 * scipy.spatial.minkowski_distance(p, q, p=1).mean()
    assert scores["tvd_to_teacher"] == pytest.approx(tvd, rel=1e-12)
    assert scores["acceptance"] == pytest.approx(100 * np.minimum(p, q).sum(-1).mean(), rel=1e-12)
