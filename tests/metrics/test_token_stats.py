import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from kdcli.metrics.score import facts_from_logits

DRAW = np.random.default_rng(3)
STUDENT, TEACHER = DRAW.normal(size=(2, 40, 11)) * 3
LABELS = DRAW.integers(0, 11, 40)
FACTS = facts_from_logits(STUDENT, LABELS, TEACHER)
Q, P = (scipy.special.softmax(rows, axis=-1) for rows in (STUDENT, TEACHER))


def test_label_log_probability_is_minus_the_cross_entropy_of_torch():
    loss = torch.nn.functional.cross_entropy(torch.tensor(STUDENT), torch.tensor(LABELS), reduction="none")
    np.testing.assert_allclose(-FACTS["label_logp"], loss.numpy(), rtol=1e-12)


def test_divergences_are_those_of_scipy():
    np.testing.assert_allclose(FACTS["kl_from_teacher"], scipy.stats.entropy(P, Q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(FACTS["kl_to_teacher"], scipy.stats.entropy(Q, P, axis=-1), rtol=1e-12)


def test_top_token_facts_by_definition():
    np.testing.assert_allclose(FACTS["top1_prob"], [max(row) for row in Q], rtol=1e-12)
    right = [float(list(row).index(max(row)) == y) for row, y in zip(Q, LABELS, strict=True)]
    assert FACTS["top1_correct"].tolist() == right
    assert FACTS["agree"].tolist() == [float(np.argmax(q) == np.argmax(p)) for q, p in zip(Q, P, strict=True)]


def test_brier_by_definition():
    expected = [sum((q - (v == y)) ** 2 for v, q in enumerate(row)) for row, y in zip(Q, LABELS, strict=True)]
    np.testing.assert_allclose(FACTS["brier"], expected, rtol=1e-12)


def test_log_probabilities_serve_as_logits():
    again = facts_from_logits(np.log(Q), LABELS, np.log(P))
    for name, values in FACTS.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-9, atol=1e-12)


def test_a_teacher_without_mass_somewhere_is_no_nan():
    facts = facts_from_logits([[0.0, 0.0]], teacher=[[0.0, -np.inf]])
    assert facts["kl_from_teacher"].item() == pytest.approx(np.log(2), abs=1e-15)
    assert facts["kl_to_teacher"].item() == np.inf


def test_facts_by_the_teacher_are_expectations_over_its_labels():
    every = [facts_from_logits(STUDENT, np.full(40, y)) for y in range(11)]
    for name, by_label, sign in (("top1", "top1_correct", 1), ("brier", "brier", 1), ("nll", "label_logp", -1)):
        expected = sign * sum(P[:, y] * facts[by_label] for y, facts in enumerate(every))
        np.testing.assert_allclose(FACTS[f"{name}_by_teacher"], expected, rtol=1e-12)


def test_a_teacher_without_mass_somewhere_expects_nothing_there():
    facts = facts_from_logits([[0.0, -np.inf]], teacher=[[0.0, -np.inf]])
    assert (facts["nll_by_teacher"].item(), facts["brier_by_teacher"].item()) == (0.0, 0.0)
