"""What every registered metric must satisfy, guests included."""

import math
import random
from dataclasses import replace

import evaluate
import numpy as np
import pytest

from kdcli.errors import InputError
from kdcli.metrics.classification import ChoiceTable
from kdcli.metrics.on_policy import SampledTokenStats
from kdcli.metrics.score import facts_from_logits
from kdcli.metrics.temperature_scaling import scaled_facts
from kdcli.registry.registry import METRICS
from kdcli.statistics import over_examples

NAMES = METRICS.names()
EXAMPLES, TOKENS, VOCAB = 12, 90, 9


def texts(seed: int) -> tuple[list[list[str]], list[list[str]]]:
    draw = random.Random(seed)

    def sentence() -> str:
        words = draw.choices(["red", "green", "blue", "Runs", "4."], k=draw.randint(1, 8))
        return " ".join(words * draw.choice([1, 1, 2])) + draw.choice(["", " ### 4", " ### 5"])

    references = [[sentence()] for _ in range(EXAMPLES)]
    return [[sentence(), valid[0] if i % 3 else sentence()] for i, valid in enumerate(references)], references


def also(seed: int) -> dict[str, list]:
    """What some metrics of texts read besides the texts."""
    draw = random.Random(seed)
    ended = [[draw.random() < 0.7, draw.random() < 0.4] for _ in range(EXAMPLES)]
    return {"ended": ended, "reference_tokens": [[1, 6, 30][i % 3] for i in range(EXAMPLES)]}


def facts(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    draw = np.random.default_rng(seed)
    student, teacher = draw.normal(size=(2, TOKENS, VOCAB))
    example = np.concatenate([np.arange(EXAMPLES), draw.integers(0, EXAMPLES, TOKENS - EXAMPLES)])
    labels = draw.integers(0, VOCAB, TOKENS)
    accepted = draw.integers(0, 2, TOKENS).astype(float)
    drafting = {"accepted": accepted, "opens": np.ones(TOKENS), "emitted": 1.0 + accepted}
    return facts_from_logits(student, labels, teacher) | scaled_facts(student, labels, 1.5) | drafting, example


def scores(metric, seed: int = 0, order: list[int] | None = None):
    order = list(range(EXAMPLES)) if order is None else order
    if metric.input_kind == "texts":
        predictions, references = texts(seed)
        told = {name: [values[i] for i in order] for name, values in also(seed).items()}
        return metric.scores_from_texts([predictions[i] for i in order], [references[i] for i in order], **told)
    values, example = facts(seed)
    tokens = [token for index in order for token in np.flatnonzero(example == index)]
    renumbered = np.array([order.index(example[token]) for token in tokens])
    chosen = {name: each[tokens] for name, each in values.items()}
    if metric.input_kind == "own":
        return metric.scores_from_own(samples(metric, chosen, renumbered, len(order)))
    if metric.input_kind == "choices":
        return metric.scores_from_choices(choices(metric, seed, order))
    return metric.scores_from_tokens(chosen, renumbered, len(order))


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_within_the_bounds_that_their_metric_gives_them(name):
    metric = METRICS.resolve(name)()
    for score in scores(metric):
        low, high = score.bounds
        assert (low, high) == metric.bounds.get(score.name, (-math.inf, math.inf))
        assert low <= score.value <= high, score.name
        each = [] if score.per_example is None else score.per_example
        assert all(low - 1e-9 <= value <= high + 1e-9 for value in each if not math.isnan(value)), score.name
        found = over_examples(score)
        assert found.low is None or low <= found.low <= found.mean <= found.high <= high
    assert set(metric.bounds) <= set(metric.scores)


BOUNDLESS = {"ex_acc_err", "top1_brier_within_covariance", "answer_brier_within_covariance"}
"""Scores of our own that may be anything."""


def test_every_score_of_ours_has_bounds_or_is_known_to_have_none():
    missing = {
        score
        for name in METRICS.table
        for score in METRICS.resolve(name).scores
        if score not in METRICS.resolve(name).bounds
    }
    assert missing == BOUNDLESS


def scores_of_rows(metric, rows, references, computed):
    """Every row an example of its own: one token, one answer of one token, or one question."""
    count, here = len(rows), np.arange(len(rows))
    if metric.input_kind == "choices":
        table = ChoiceTable(rows, np.ones(rows.shape, dtype=np.int64), references)
        return metric.scores_from_choices(replace(table, development=table) if metric.needs_development else table)
    sides = {"teacher": references} if metric.needs_teacher() else {"labels": references}
    found = facts_from_logits(rows, **sides)
    if "temperature" in metric.facts:
        found |= scaled_facts(rows, references, computed["temperature"])
    if metric.input_kind == "tokens":
        return metric.scores_from_tokens(found, here, count)
    if "accepted" in metric.facts:  # what is to be expected of one drafted token a call
        likely = 1.0 - found["total_variation"]
        found |= {"accepted": likely, "opens": np.ones(count), "emitted": 1.0 + likely}
    own = SampledTokenStats(found, here, np.zeros_like(here), np.zeros_like(here), count, 1, 1)
    return metric.scores_from_own(dict.fromkeys(metric.samplers, own))


def choices(metric, seed: int, order: list[int]) -> ChoiceTable:
    draw = np.random.default_rng(seed)
    logits, right = draw.normal(size=(EXAMPLES, VOCAB)), draw.integers(0, VOCAB, EXAMPLES)
    table = ChoiceTable(logits, draw.integers(1, 4, (EXAMPLES, VOCAB)), right, tuple("abcdefghi"))
    measured = ChoiceTable(table.scores[order], table.tokens[order], right[order], table.labels)
    return replace(measured, development=table) if metric.needs_development else measured


def samples(metric, values, example, examples: int):
    """Every token of an example an answer's next one; each sampler's facts are other multiples, by the position."""
    position = np.array([np.count_nonzero(example[:token] == owner) for token, owner in enumerate(example)])
    answer = np.zeros_like(example)
    return {
        sampler: SampledTokenStats(
            {name: each * (1.0 - 0.1 * index * (1 + position % 2)) for name, each in values.items()},
            example, answer, position, examples, 1, TOKENS,
        )
        for index, sampler in enumerate(metric.samplers)
    }  # fmt: skip


@pytest.fixture(params=NAMES)
def metric(request):
    return METRICS.resolve(request.param)()


def test_it_is_an_evaluate_metric_and_says_what_it_is(metric):
    assert isinstance(metric, evaluate.Metric)
    assert metric.name in NAMES
    assert metric.signature.startswith(metric.name)
    assert metric.description
    assert len(metric.__doc__.splitlines()) > 1


def test_it_yields_the_scores_it_declares_with_their_directions(metric):
    assert {score.name: score.better for score in scores(metric)} == dict(metric.scores)


def test_compute_gives_the_same_numbers_as_the_scores(metric):
    if metric.input_kind == "texts":
        predictions, references = texts(0)
        computed = metric.compute(predictions=predictions, references=references, **also(0))
        assert computed == {score.name: score.value for score in scores(metric)}
    else:
        draw = np.random.default_rng(0)
        rows = draw.normal(size=(5, VOCAB))
        references = draw.normal(size=(5, VOCAB)) if metric.needs_teacher() else draw.integers(0, VOCAB, 5)
        computed = metric.compute(predictions=rows, references=references)
        assert computed == {score.name: score.value for score in scores_of_rows(metric, rows, references, computed)}


def test_every_value_is_finite_on_ordinary_input(metric):
    assert all(math.isfinite(score.value) for score in scores(metric))


def test_the_order_of_examples_changes_nothing_to_the_last_bit(metric):
    shuffled = random.Random(1).sample(range(EXAMPLES), EXAMPLES)
    assert [s.value for s in scores(metric)] == [s.value for s in scores(metric, order=shuffled)]
    assert [over_examples(s) for s in scores(metric)] == [over_examples(s) for s in scores(metric, order=shuffled)]


def test_additive_sums_stand_for_any_subset_of_examples(metric):
    whole = scores(metric)
    part = [1, 3, 4, 5, 9]
    for score, alone in zip(whole, scores(metric, order=part), strict=True):
        if score.sums is not None:
            assert score.sums.shape[0] == EXAMPLES
            assert float(score.finish(score.sums[part].sum(0))) == pytest.approx(alone.value, rel=1e-12)


def test_statistics_by_answer_average_to_those_of_the_example(metric):
    for score in scores(metric):
        if score.answers is not None:
            np.testing.assert_allclose(score.answers.mean(1), score.sums, rtol=1e-12)


def test_duplicating_every_example_keeps_an_additive_score(metric):
    for score in scores(metric):
        if score.sums is not None:
            doubled = score.finish(np.concatenate([score.sums, score.sums]).sum(0))
            assert float(doubled) == pytest.approx(score.value, rel=1e-12)


def test_additive_scores_have_an_interval_around_them(metric):
    for score in scores(metric):
        estimate = over_examples(score)
        if score.sums is None and score.redraw is None:
            assert estimate.low is None
        else:
            assert estimate.low < estimate.mean < estimate.high
            counted = EXAMPLES if score.sums is None else int(np.any(score.sums != 0.0, axis=-1).sum())
            assert estimate.count == counted
            assert counted == EXAMPLES or score.optional


def test_nothing_to_score_and_lengths_that_differ_are_refused(metric):
    if metric.input_kind == "texts":
        two, one = ["a", "b"], ["a"]
    else:
        two, one = [[0.0, 1.0]] * 2, [[1.0, 0.0]] if metric.needs_teacher() else [1]
    for predictions, references in (([], []), (two, one)):
        with pytest.raises(InputError) as caught:
            metric.compute(predictions=predictions, references=references)
        assert caught.value.exit_code == 3
