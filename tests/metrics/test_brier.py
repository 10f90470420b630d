import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcli.errors import InputError
from kdcli.metrics.calibration import PARTS, BrierParts, brier_part, brier_sums


def parts(probability, outcome, bins, event=0, events=1):
    sums = brier_sums(
        np.array(probability), np.array(outcome, dtype=float), np.arange(len(probability)), len(probability),
        bins=bins, event=event, events=events,
    ).sum(0)  # fmt: skip
    return {name: float(brier_part(sums, name, bins)) for name in ("whole", *PARTS)}


def put_together(found) -> float:
    return (
        found["reliability"] - found["resolution"] + found["uncertainty"]
        + found["within_variance"] - found["within_covariance"]
    )  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.sampled_from([1, 2, 10, 15]))
def test_the_parts_add_up_exactly(cases, bins):
    probability, outcome = [p for p, _ in cases], [int(o) for _, o in cases]
    found = parts(probability, outcome, bins)
    assert found["whole"] == pytest.approx(np.mean((np.array(probability) - outcome) ** 2), abs=1e-12)
    assert put_together(found) == pytest.approx(found["whole"], abs=1e-12)


def test_the_parts_equal_their_definitions_bin_by_bin():
    draw = np.random.default_rng(0)
    p, o = draw.random(200), draw.integers(0, 2, 200).astype(float)
    bin_of = (p * 4).astype(int)
    expected = dict.fromkeys(PARTS, 0.0) | {"uncertainty": o.mean() * (1 - o.mean())}
    for k in range(4):
        mine, theirs = p[bin_of == k], o[bin_of == k]
        share = len(mine) / 200
        expected["reliability"] += share * (mine.mean() - theirs.mean()) ** 2
        expected["resolution"] += share * (theirs.mean() - o.mean()) ** 2
        expected["within_variance"] += share * mine.var()
        expected["within_covariance"] += 2 * share * np.mean((mine - mine.mean()) * (theirs - theirs.mean()))
    found = parts(p, o, 4)
    assert {name: found[name] for name in PARTS} == pytest.approx(expected, abs=1e-12)


def test_forecasts_that_sit_on_one_value_per_bin_have_nothing_within():
    found = parts([0.15] * 4 + [0.85] * 4, [0, 0, 0, 1, 1, 1, 1, 0], 10)
    assert found["within_variance"] == pytest.approx(0.0, abs=1e-15)
    assert found["within_covariance"] == pytest.approx(0.0, abs=1e-15)
    assert found["resolution"] == pytest.approx(0.25**2, abs=1e-15)


def test_events_add_up():
    draw = np.random.default_rng(1)
    p, o, event = draw.random(60), draw.integers(0, 2, 60), np.tile([0, 1, 2], 20)
    together = parts(p, o, 5, event, 3)
    apart = [parts(p[event == one], o[event == one], 5) for one in range(3)]
    assert together == pytest.approx({name: sum(one[name] for one in apart) for name in together}, abs=1e-12)


def test_one_class_and_all_wrong():
    right = parts([0.9, 0.8], [1, 1], 10)
    assert (right["uncertainty"], right["resolution"]) == pytest.approx((0.0, 0.0), abs=1e-12)
    wrong = parts([1.0, 1.0], [0, 0], 10)
    assert (wrong["whole"], wrong["reliability"]) == (1.0, 1.0)


def test_the_metric_takes_the_top_token():
    scores = BrierParts(bins=5).compute(predictions=np.log([[0.7, 0.3], [0.4, 0.6]]), references=[0, 0])
    assert scores["top1_brier"] == pytest.approx((0.09 + 0.36) / 2)
    with pytest.raises(InputError, match="at least 1"):
        BrierParts(bins=0)
