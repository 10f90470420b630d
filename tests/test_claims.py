"""Claims on scores that no textbook interval expects: simulated, with seeds and examples both drawn."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, binomtest

import simulated
from kdcli.bounded import NOT_NEGATIVE, PERCENT, SHARE, score_interval
from kdcli.comparison.aggregate import Group
from kdcli.comparison.tables_store import ComparisonMeta
from kdcli.config.schema import EvalSettings
from kdcli.distill.records import RunRecord
from kdcli.evaluation.answers import TextSamples
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.evaluation.results import Rows, write_results
from kdcli.evaluation.scoring import build_metrics
from kdcli.metrics.score import Score, ratio
from kdcli.statistics import (
    bootstrap,
    detectable,
    difference_over_both,
    difference_over_examples,
    difference_over_seeds,
    over_both,
    over_examples,
    over_seeds,
    smallest_detectable_difference,
    split_difference,
)
from kdcli.statistics.variance_components import Parts
from kdcli.study.results import conclude

RARE = 1e-4
"""How often a check below fails although what it checks is right."""


def at_most(rate, bound, trials):
    """Whether a rate found in so many trials proves that the true one is at most the bound."""
    return rate * trials <= binom.ppf(RARE, trials, bound)


def not_below(rate, bound, trials):
    """Whether a rate found in so many trials goes with a true one of at least the bound."""
    return rate * trials >= binom.ppf(RARE, trials, bound)


EQUAL = [(2, 100, 0.01), (2, 100, 0.04), (2, 500, 0.01), (2, 500, 0.04), (3, 100, 0.01)]


@pytest.mark.parametrize(("seeds", "examples", "rate"), EQUAL)
def test_six_equal_contenders_that_seldom_hit_are_not_told_apart(seeds, examples, rate):
    trials = 400
    found = simulated.false_claims(partial(simulated.hits, rate=rate), seeds, examples, trials)
    assert at_most(found, 0.06, trials)


def test_claims_are_those_of_adjusted_p_values():
    drawn = simulated.hits(np.random.default_rng(3), 200, 4, 3, 40, rate=(0.2, 0.2, 0.3, 0.6))
    halves = [simulated.difference_half(drawn, line, 0, 0.05 / 3) for line in (1, 2, 3)]
    by_interval = np.any([np.abs(change) > half for half, change in halves], axis=0)
    assert simulated.claims_by_holm(drawn) == by_interval.tolist()
    assert 0.1 < by_interval.mean() < 0.99


@pytest.mark.full
@pytest.mark.parametrize("clump", [None, 0.3])
@pytest.mark.parametrize(("seeds", "examples", "rate"), EQUAL)
def test_no_more_than_6_of_100_studies_claim_what_is_not_there(seeds, examples, rate, clump):
    for effect in (0.0, 0.5):
        make = partial(simulated.hits, rate=rate, clump=clump, seed_effect=effect)
        assert at_most(simulated.false_claims(make, seeds, examples, 4000), 0.06, 4000)


def test_variance_0_taken_for_certainty_fails_the_same_check(monkeypatch):
    monkeypatch.setattr(simulated, "split_difference", lambda table, _: _certain(table))
    found = simulated.false_claims(partial(simulated.hits, rate=0.01), 2, 100, 400)
    assert found > 0.3


def _certain(table):
    parts = split_difference(table)
    return replace(parts, fixed=np.zeros_like(parts.fixed))


COVERED = {
    "0/1, 1 %": partial(simulated.hits, rate=0.01),
    "0/1, 4 and 10 %": partial(simulated.hits, rate=(0.04, 0.10)),
    "0/1, 90 and 97 %": partial(simulated.hits, rate=(0.90, 0.97)),
    "0/1, easy and hard examples": partial(simulated.hits, rate=(0.04, 0.10), clump=0.3),
    "0/1, good and bad seeds": partial(simulated.hits, rate=(0.04, 0.10), seed_effect=0.5),
    "five values": partial(simulated.hits, rate=(0.1, 0.15), steps=4, clump=2.0, seed_effect=0.3),
    "skewed examples": partial(simulated.smooth, of_example="gamma"),
    "heavy-tailed examples": partial(simulated.smooth, of_example="t3"),
    "paired seeds": partial(simulated.smooth, shared=0.9),
    "unequal examples": simulated.tokens,
}


@pytest.mark.parametrize("kind", COVERED)
def test_intervals_of_means_and_differences_cover(kind):
    trials = 800
    for rate in simulated.coverage(COVERED[kind], 3, 100, trials):
        assert not_below(rate, 0.935, trials)


@pytest.mark.full
@pytest.mark.parametrize(("seeds", "examples"), [(2, 100), (3, 100), (5, 100), (2, 500), (3, 500)])
@pytest.mark.parametrize("kind", COVERED)
def test_intervals_cover_with_any_number_of_seeds(kind, seeds, examples):
    for rate in simulated.coverage(COVERED[kind], seeds, examples, 6000):
        assert not_below(rate, 0.935, 6000)


def test_a_seed_that_fails_unseen_is_not_covered():
    """No interval of three seeds can know that one in ten fails; the page says how often it is wrong."""
    _, rate = simulated.coverage(partial(simulated.smooth, of_seed="failing", share=0.9, alone=True), 3, 100, 1500)
    assert rate < 0.92


@pytest.mark.parametrize("tests", [1, 5, 9])
@pytest.mark.parametrize(("seeds", "examples", "share"), [(2, 50, 0.3), (3, 200, 0.8), (5, 100, 0.0)])
def test_the_smallest_detectable_difference_has_the_power_it_promises(seeds, examples, share, tests):
    trials = 1500
    drawn = simulated.smooth(np.random.default_rng(seeds), trials, 1, seeds, examples, share=share)
    rest = 0.25 / seeds
    fixed = (1.0 - share + rest) * (1.0 + 6.0 / examples)
    true = Parts(*(np.array(value) for value in (share + rest, 1.0 - share, rest, fixed)), (seeds, examples))
    size = float(detectable(true, 0.05 / tests))
    table = drawn.values[:, 0] + size
    found = float(np.mean(split_difference(table).p_value(table.mean((1, 2))) < 0.05 / tests))
    assert 0.75 < found < 0.85


def score(values, bounds=SHARE) -> Score:
    return Score("s", np.stack([values, np.ones(len(values))], axis=-1), ratio(), "higher", bounds=bounds)


def test_its_range_holds_what_the_true_variance_gives():
    draw, inside, trials, sizes = np.random.default_rng(8), 0, 60, []
    for _ in range(trials):
        lines = [[score(0.1 * draw.normal() + 0.3 * draw.normal(size=40)) for _ in range(3)] for _ in range(4)]
        found = smallest_detectable_difference([(line, lines[0]) for line in lines[1:]], tests=3)
        true = Parts(*(np.array(2 / 3 * one) for one in (0.01 + 0.09 / 40, 0.0, 0.09 / 40, 0.09 / 40)), (3, 40))
        size = float(detectable(true, 0.05 / 3))
        inside += found.low <= size <= found.high
        sizes.append(found.size <= size)
    assert not_below(inside / trials, 0.9, trials)
    assert 0.3 < np.mean(sizes) < 0.7
    assert smallest_detectable_difference([]) is None
    same = [score(np.zeros(5))] * 2
    assert smallest_detectable_difference([([score(np.arange(5.0), NOT_NEGATIVE)] * 2,) * 2]) is None
    assert smallest_detectable_difference([(same, same)]).low > 0.0


def test_few_rows_that_differ_count_as_in_the_exact_sign_test():
    """Of k rows that differ, all for one side, p is close to 2 / 2**k, and never below it by much."""
    for k in range(1, 13):
        row = np.zeros((1, 200))
        row[:, :k] = 1.0
        for seeds in (1, 2, 3):
            table = np.repeat(row, seeds, axis=0)
            p_value = float(split_difference(table, 1.0).p_value(np.array(table.mean())))
            assert 0.5 < p_value / binomtest(k, k).pvalue < 2.5


def test_no_difference_between_seeds_is_no_certainty():
    """Two seeds that agree exactly, everywhere or in every row, leave an interval of some width."""
    none, all_, few = np.zeros(100), np.ones(100), np.r_[np.ones(2), np.zeros(98)]
    zero = difference_over_both([score(none)] * 2, [score(none)] * 2)
    assert zero.high == pytest.approx(-zero.low)
    assert 0.02 < zero.high < 0.04
    assert zero.p_value == 1.0
    whole = difference_over_both([score(none)] * 2, [score(all_)] * 2)
    assert whole.low == -1.0 < whole.high < -0.9
    assert 0.0 < whole.p_value < 1e-6
    some = difference_over_both([score(none)] * 2, [score(few)] * 2)
    assert some.low < -0.04 < 0.0 < some.high
    assert some.p_value > 0.2
    models = difference_over_examples([score(none)], [score(all_)])
    assert models.low == -1.0 < models.high < -0.9
    assert over_both([score(none)] * 2).high == pytest.approx(
        binomtest(0, 100).proportion_ci(method="wilson").high, abs=0.002
    )
    assert over_examples(score(all_)).low == pytest.approx(
        binomtest(100, 100).proportion_ci(method="wilson").low, abs=0.002
    )


def test_equal_differences_of_whole_sets_are_no_certainty_either():
    same = difference_over_seeds({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (same.low, same.high, same.p_value) == (None, None, 0.25)
    assert over_seeds([0.5, 0.5]).low is None
    rounded = difference_over_seeds({0: 0.3, 1: 0.4, 2: 0.7}, {0: 0.2, 1: 0.3, 2: 0.6})
    assert len({0.3 - 0.2, 0.4 - 0.3, 0.7 - 0.6}) > 1
    assert (rounded.low, rounded.high, rounded.p_value) == (None, None, 0.25)


def test_a_table_of_seldom_hits_claims_nothing(tmp_path):
    """Two seeds of 100 rows: the contender misses in both the two rows that the baseline hits."""
    hits = {"base": {3, 70}, "other": set()}
    groups = [
        Group(label, {seed: _answered(tmp_path / f"{label}-{seed}", label, seed, right) for seed in (0, 1)})
        for label, right in hits.items()
    ]
    (tmp_path / "study").mkdir()
    found = conclude(groups, ComparisonMeta("base"), tmp_path / "study")
    change = found.rows[1].differences["exact_match"]
    assert change.mean == pytest.approx(-2.0)
    assert change.low < -4.0 < 0.0 < change.high
    assert change.p_value > 0.2
    assert found.rows[1].models["exact_match"].p_value == pytest.approx(0.5, abs=0.02)
    assert [row.tied for row in found.rows] == [("exact_match",)] * 2
    assert found.detectable["exact_match"].low > 2.0
    mean = found.rows[1].scores["exact_match"]
    assert (mean.low, mean.high) == pytest.approx((0.0, 3.79), abs=0.01)
    table = (tmp_path / "study" / "table.md").read_text(encoding="utf-8")
    assert "-2.0 \\[-5.9, +1.9\\]" in table  # half of it is t(99) sqrt((1.96 + 2 * 0.941) / (100 * 99))
    assert "<u>0.0</u> \\[0.0, 3.8\\]" in table


def _answered(folder, label, seed, right):
    """A run whose answers match the reference in these rows only."""
    (folder / "eval").mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": "done", "student_tokens": 9, "teacher_tokens": 9}))
    settings = EvalSettings(metrics=("exact_match",))
    answers, references = [["yes" if row in right else "no"] for row in range(100)], [["yes"]] * 100
    (metric,), *_ = build_metrics(settings)
    scores = metric.scores_from_texts(answers, references)
    estimates = {one.name: over_examples(one) for one in scores}
    infos = tuple(ScoreInfo(one.name, one.better, "exact_match", "exact_match", "texts") for one in scores)
    record = EvalRecord("test", "model", folder / "eval" / "test", 100, estimates, infos, {}, "digest")
    texts = TextSamples(answers, references, ["prompt"] * 100, [[True]] * 100)
    write_results(
        folder / "eval" / "test", record, settings, Rows([f"line {row}" for row in range(100)], texts), scores
    )
    return RunRecord(folder, label, seed, 10, 1000, 1.0, 2**20, {"loss": label, "train.seed": seed}), record


@pytest.mark.parametrize(
    ("rates", "trials"), [((0.01, 0.04), 60), pytest.param((0.04, 0.10), 600, marks=pytest.mark.full)]
)
def test_the_interval_of_trained_models_covers_few_hits(rates, trials, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 499)
    draw, inside = np.random.default_rng(1), 0
    for _ in range(trials):
        theirs, ours = (score((draw.random(100) < rate).astype(float)) for rate in rates)
        found = difference_over_examples([ours], [theirs])
        inside += found.low <= rates[1] - rates[0] <= found.high
    assert not_below(inside / trials, 0.935, trials)


def test_intervals_stay_on_the_scale():
    """Two seeds have a quantile of 12.7; scores from 0 to 100 still end there."""
    low_end = over_both([score(np.r_[np.full(9, value), 1.0] * 100, PERCENT) for value in (0.0, 0.3)])
    assert 0.0 < low_end.low < low_end.mean < low_end.high < 100.0
    one, other = ([score(np.full(9, value) + np.arange(9) / 50, SHARE)] for value in (0.1, 0.8))
    assert difference_over_both(one + other, other + one).low >= -1.0
    assert difference_over_both(one + other, other + one).high <= 1.0
    for value in over_seeds([0.2, 0.9], SHARE).low, over_seeds([0.2, 0.9], SHARE).high:
        assert 0.0 < value < 1.0
    assert over_both([score(np.arange(9.0) * scale, NOT_NEGATIVE) for scale in (0.5, 2.0)]).low > 0.0
    symmetric = over_both([score(np.arange(9.0) * scale, (-np.inf, np.inf)) for scale in (0.5, 2.0)])
    assert symmetric.low < 0.0
    assert symmetric.mean - symmetric.low == pytest.approx(symmetric.high - symmetric.mean)


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (1, 20), (7, 20), (20, 20), (3, 400)])
def test_the_score_interval_of_a_share_is_wilsons(hits, trials):
    quantile, share = 1.959963984540054, hits / trials
    half = quantile * np.sqrt(share * (1 - share) / trials)
    found = score_interval(100 * share, 100 * half, PERCENT, quantile**2 / trials)
    exact = binomtest(hits, trials).proportion_ci(method="wilson")
    assert np.array(found) == pytest.approx(100 * np.array([exact.low, exact.high]), abs=1e-9)


def test_the_score_interval_of_a_count_is_that_of_a_poisson_mean():
    """Its ends solve (mean - end)**2 = quantile**2 * end."""
    low, high = score_interval(9.0, 2.0 * 3.0, NOT_NEGATIVE)
    assert [(9.0 - end) ** 2 for end in (low, high)] == pytest.approx([4.0 * low, 4.0 * high])
    outside = score_interval(-0.1, 0.2, NOT_NEGATIVE)
    assert (float(outside[0]), float(outside[1])) == pytest.approx((-0.3, 0.1))


PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "coverage.py"


def _on_page(line):
    """The cells of a line of one of the page's tables."""
    found = [each for each in PAGE.read_text(encoding="utf-8").splitlines() if each.startswith(f"| {line} |")]
    return [cell.strip() for each in found for cell in each.strip("|").split("|")[1:]]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("which", [pytest.param(slice(None), marks=pytest.mark.full), slice(5, 7)])
def test_the_page_prints_what_the_benchmark_counts(benchmark, which):
    for name, make in list(benchmark.KINDS.items())[which]:
        found = " / ".join(map(benchmark.percent, simulated.coverage(make, 3, 100, 5000)))
        assert found == _on_page(name)[1], name


def test_the_page_keeps_its_promises(benchmark):
    for name in benchmark.KINDS:
        if not name.startswith("*"):
            assert all(float(rate) >= 93.5 for cell in _on_page(name)[:5] for rate in cell.split(" / ")), name
    equal = [line for line in benchmark.EQUAL if line not in benchmark.KINDS]
    assert all(float(rate) <= 6.0 for name in equal for rate in _on_page(name)[:5])
    designs = [
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.endswith("|") and "% from seeds |" in line
    ]
    power = [float(cell) for line in designs if " × " in line for cell in line.split("|")[2:5]]
    assert len(power) == 12
    assert all(75.0 < rate < 85.0 for rate in power)
