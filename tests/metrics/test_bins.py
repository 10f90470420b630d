from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from kdcli.metrics.calibration import (
    bin_sums,
    calibration_error,
    equal_mass,
    equal_width,
    largest_gap,
    mean_calibration_error,
)


def sums(confidence, correct, bins=10):
    count = len(confidence)
    return bin_sums(np.array(confidence), np.array(correct, dtype=float), np.arange(count), count, bins).sum(0)


@pytest.mark.parametrize("bins", [1, 3, 7, 10, 15, 100])
def test_every_edge_written_as_a_decimal_or_a_fraction_opens_its_bin(bins):
    edges = [k / bins for k in range(bins)]
    assert equal_width(np.array(edges), bins).tolist() == list(range(bins))
    below = [np.nextafter(edge, 0.0) for edge in edges[1:]]
    assert equal_width(np.array(below), bins).tolist() == list(range(bins - 1))


def test_hand_examples_at_the_edges():
    assert equal_width(np.array([0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 1.0]), 10).tolist() == [0, 1, 2, 3, 6, 7, 9, 9]
    assert equal_width(np.array([0.29, 0.57, 0.58]), 100).tolist() == [29, 57, 58]
    assert calibration_error(sums([0.3, 0.7], [1, 0])).item() == pytest.approx(0.7, abs=1e-15)
    assert calibration_error(sums([0.3, 0.35], [0, 1])).item() == pytest.approx(0.175, abs=1e-15)
    assert calibration_error(sums([0.3, 0.25], [0, 1])).item() == pytest.approx((0.3 + 0.75) / 2, abs=1e-15)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.sampled_from([1, 2, 10, 15]))
def test_bins_and_errors_equal_exact_arithmetic(tokens, bins):
    edges = [Fraction(k / bins) for k in range(1, bins)]
    held = {}
    for confidence, right in tokens:
        held.setdefault(sum(edge <= Fraction(confidence) for edge in edges), []).append((Fraction(confidence), right))
    gaps = {k: abs(sum(int(right) - confidence for confidence, right in inside)) for k, inside in held.items()}
    found = sums([confidence for confidence, _ in tokens], [right for _, right in tokens], bins)
    assert calibration_error(found).item() == pytest.approx(float(sum(gaps.values()) / len(tokens)), abs=1e-12)
    largest = max(gaps[k] / len(inside) for k, inside in held.items())
    assert largest_gap(found).item() == pytest.approx(float(largest), abs=1e-12)


@pytest.mark.parametrize("bins", [5, 10, 15])
@pytest.mark.parametrize("norm, ours", [("l1", calibration_error), ("max", largest_gap)])
def test_top_label_errors_equal_torchmetrics(bins, norm, ours):
    draw = np.random.default_rng(bins)
    logits, labels = draw.normal(size=(500, 6)) * 2, draw.integers(0, 6, 500)
    probability = torch.tensor(logits).softmax(1)
    confidence, top = probability.max(1)
    theirs = multiclass_calibration_error(probability, torch.tensor(labels), 6, n_bins=bins, norm=norm).item()
    assert ours(sums(confidence.numpy(), top.numpy() == labels, bins)).item() == pytest.approx(theirs, abs=1e-6)


def test_the_classwise_error_is_torchmetrics_binary_error_averaged_over_the_classes():
    draw = np.random.default_rng(4)
    probability = torch.tensor(draw.normal(size=(300, 4)) * 2).softmax(1)
    labels = draw.integers(0, 4, 300)
    apart = [sums(probability[:, one].numpy(), labels == one, 15) for one in range(4)]
    theirs = [
        binary_calibration_error(
            probability[:, one].contiguous(), torch.tensor(labels == one), n_bins=15, norm="l1"
        ).item()
        for one in range(4)
    ]
    assert mean_calibration_error(np.concatenate(apart), 15).item() == pytest.approx(np.mean(theirs), abs=1e-6)


def test_equal_mass_bins_hold_equally_many_and_ties_stay_together():
    draw = np.random.default_rng(5)
    confidence = draw.random(1000)
    assert np.bincount(equal_mass(confidence, 10)).tolist() == [100] * 10
    order = np.argsort(confidence)
    assert (np.diff(equal_mass(confidence, 10)[order]) >= 0).all()
    assert equal_mass(np.full(7, 0.5), 10).tolist() == [0] * 7
    tied = draw.integers(0, 3, 100) / 3
    for value in np.unique(tied):
        assert len(set(equal_mass(tied, 10)[tied == value])) == 1


def test_no_tokens_no_number():
    assert np.isnan(calibration_error(np.zeros(30)))
    assert np.isnan(largest_gap(np.zeros(30)))
