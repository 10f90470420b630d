import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from kdcli.errors import InputError
from kdcli.metrics.calibration import Calibration, bin_sums, calibration_error


def ece(confidence, correct, bins=10) -> float:
    count = len(confidence)
    sums = bin_sums(np.array(confidence), np.array(correct, dtype=float), np.arange(count), count, bins)
    return float(calibration_error(sums.sum(0)))


def ece_by_definition(confidence, correct, bins) -> float:
    gap = 0.0
    for index in range(bins):
        inside = [
            i for i, c in enumerate(confidence) if index <= c * bins < index + 1 or (index == bins - 1 and c == 1.0)
        ]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            gap += len(inside) / len(confidence) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return gap


def test_the_published_example():
    assert ece([0.95, 0.85, 0.75, 0.65, 0.55], [1, 1, 0, 1, 0]) == pytest.approx(0.37, abs=1e-15)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.sampled_from([1, 2, 10, 15]))
def test_it_equals_the_definition(tokens, bins):
    confidence, correct = [c for c, _ in tokens], [int(right) for _, right in tokens]
    assert ece(confidence, correct, bins) == pytest.approx(ece_by_definition(confidence, correct, bins), abs=1e-12)


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_it_equals_torchmetrics(bins):
    draw = np.random.default_rng(bins)
    logits, labels = draw.normal(size=(500, 6)) * 2, draw.integers(0, 6, 500)
    theirs = multiclass_calibration_error(torch.tensor(logits), torch.tensor(labels), 6, n_bins=bins, norm="l1").item()
    assert Calibration(bins=bins).compute(predictions=logits, references=labels)["ece"] == pytest.approx(
        theirs, abs=1e-6
    )


def test_edges_zero_one_and_borders_have_one_bin_each():
    confidence = np.array([0.0, 0.1, 0.5, 0.9, 1.0, 1.0 + 1e-7])
    sums = bin_sums(confidence, np.ones(6), np.zeros(6, dtype=np.int64), 1, 10).reshape(10, 3)
    assert sums[:, 0].tolist() == [1, 1, 0, 0, 0, 1, 0, 0, 0, 3]


def test_sums_of_examples_add_up_to_the_sums_of_all_tokens():
    draw = np.random.default_rng(0)
    confidence, correct = draw.random(300), draw.integers(0, 2, 300).astype(float)
    example = draw.integers(0, 20, 300)
    apart = bin_sums(confidence, correct, example, 20, 10)
    together = bin_sums(confidence, correct, np.zeros(300, dtype=np.int64), 1, 10)
    np.testing.assert_allclose(apart.sum(0), together[0], rtol=1e-13)


def test_perfect_confidence_is_calibrated_and_overconfidence_is_not():
    assert ece([1.0, 1.0], [1, 1]) == 0.0
    assert ece([1.0, 1.0], [0, 0]) == 1.0
    assert ece([0.75] * 4, [1, 1, 1, 0]) == 0.0


def test_brier_and_nll_come_along():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    scores = Calibration().compute(predictions=logits, references=[0, 0])
    assert scores["brier"] == pytest.approx((0.25 + 0.125 + 0.81 + 0.64 + 0.01) / 2)
    assert scores["nll"] == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2)


def test_bins_change_number_and_signature():
    assert Calibration(bins=15).signature.startswith("ece|bins:15|")
    confidence, correct = [0.81, 0.89], [1, 0]
    assert ece(confidence, correct, 10) != ece(confidence, correct, 20)
    with pytest.raises(InputError, match="at least 1"):
        Calibration(bins=0)
