import numpy as np
import pytest

from kdcli.metrics.calibration import Calibration, TokenBins
from kdcli.metrics.temperature_scaling import TokenTemperature, scaled_facts


def made(rows=3000, seed=0):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(rows, 8)) * 4
    return logits, (logits / 2 + draw.gumbel(size=logits.shape)).argmax(1)


def test_scaled_values_stand_beside_the_raw_ones():
    logits, labels = made()
    found = TokenTemperature().compute(predictions=logits, references=labels)
    raw = Calibration().compute(predictions=logits, references=labels)
    scaled = Calibration().compute(predictions=logits / found["temperature"], references=labels)
    assert found["temperature"] == pytest.approx(2.0, rel=0.1)
    for name in ("ece", "brier", "nll"):
        assert found[name] == raw[name]
        assert found[f"{name}_scaled"] == pytest.approx(scaled[name], abs=1e-12)
        assert found[f"{name}_scaled"] < found[name]


def test_the_diagrams_before_and_after_share_their_tokens():
    logits, labels = made(200)
    facts = scaled_facts(logits, labels, 2.0)
    (curve,) = TokenTemperature().curves(facts, np.arange(200), 200)
    before, after = curve.series
    assert sum(before.count) == sum(after.count) == 200
    assert np.mean(before.x) > np.mean(after.x)
    assert "temperature 2" in after.label


def test_without_development_rows_it_says_so():
    assert TokenTemperature().needs_development
    assert not TokenBins().needs_development


def test_other_bins_of_the_same_tokens():
    logits, labels = made(500)
    found = TokenBins(bins=5).compute(predictions=logits, references=labels)
    ece = Calibration(bins=5).compute(predictions=logits, references=labels)["ece"]
    assert found["mce"] >= ece
    assert found["ece_mass"] == pytest.approx(ece, abs=0.05)
