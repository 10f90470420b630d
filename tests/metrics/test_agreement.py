import numpy as np
import pytest

from kdcli.metrics.teacher_agreement import Agreement

STUDENT, TEACHER = np.random.default_rng(9).normal(size=(2, 80, 4))


def test_it_counts_equal_top_tokens():
    same = sum(list(q).index(max(q)) == list(p).index(max(p)) for q, p in zip(STUDENT, TEACHER, strict=True))
    value = Agreement().compute(predictions=STUDENT, references=TEACHER)["agreement"]
    assert value == pytest.approx(100 * same / 80)
    assert 0 < value < 100


def test_a_model_agrees_with_itself():
    assert Agreement().compute(predictions=STUDENT, references=STUDENT * 0.1)["agreement"] == 100.0
