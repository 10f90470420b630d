import numpy as np
import pytest
import torch
from torchmetrics.functional.text import perplexity

from kdcli.metrics.teacher_agreement import Perplexity

DRAW = np.random.default_rng(5)
LOGITS, LABELS = DRAW.normal(size=(60, 13)) * 2, DRAW.integers(0, 13, 60)


def test_it_equals_torchmetrics():
    theirs = perplexity(torch.tensor(LOGITS)[None], torch.tensor(LABELS)[None]).item()
    ours = Perplexity().compute(predictions=LOGITS, references=LABELS)
    assert ours["perplexity"] == pytest.approx(theirs, rel=1e-6)
    assert ours["nll"] == pytest.approx(np.log(theirs), rel=1e-6)


def test_the_mean_is_over_tokens_not_over_examples():
    logp = np.log([0.5, 0.5, 0.5, 0.125])
    (score, nll) = Perplexity().scores_from_tokens({"label_logp": logp}, np.array([0, 0, 0, 1]), 2)
    assert score.value == pytest.approx(2**1.5, rel=1e-14)
    assert nll.value == pytest.approx(1.5 * np.log(2), rel=1e-14)
    np.testing.assert_allclose(score.per_example, [2.0, 8.0], rtol=1e-14)


def test_certainty_and_overflow():
    scores = Perplexity().scores_from_tokens({"label_logp": np.zeros(3)}, np.zeros(3), 1)
    assert [score.value for score in scores] == [1.0, 0.0]
    scores = Perplexity().scores_from_tokens({"label_logp": np.full(3, -1e4)}, np.zeros(3), 1)
    assert [score.value for score in scores] == [np.inf, 1e4]
