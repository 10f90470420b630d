from typing import ClassVar

import evaluate
import numpy as np
import pytest

from kdcli.errors import InputError, NumericsError
from kdcli.metrics.base import Metric, TextMetric
from kdcli.metrics.qa import ExactMatch
from kdcli.metrics.rouge import RougeL
from kdcli.metrics.score import Score, ratio
from kdcli.metrics.teacher_agreement import KLToTeacher, Perplexity


def test_it_is_an_evaluate_metric_that_touches_no_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    metric = ExactMatch()
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=["a"], references=["a"]) == {"exact_match": 100.0}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("predictions", [["a", "b"], [["a", "c"], ["b", "d"]]])
@pytest.mark.parametrize("references", [["a", "b"], [["a", "c"], ["b"]]])
def test_texts_may_come_alone_or_as_lists(predictions, references):
    assert ExactMatch().compute(predictions=predictions, references=references)["exact_match"] >= 50.0


def test_batches_added_piece_by_piece_give_the_same_number():
    metric = RougeL()
    metric.add_batch(predictions=["a b", "c"], references=["a", "c"])
    metric.add(prediction="d", reference="e")
    whole = RougeL().compute(predictions=["a b", "c", "d"], references=["a", "c", "e"])
    assert metric.compute() == whole


def test_a_metric_can_be_used_again_after_a_mistake():
    metric = ExactMatch()
    with pytest.raises(InputError):
        metric.compute(predictions=[1], references=["a"])
    assert metric.compute(predictions=["a"], references=["a"]) == {"exact_match": 100.0}


@pytest.mark.parametrize(
    "arguments, what",
    [
        ({"predictions": ["a", "b"], "references": ["a"]}, "2 predictions but 1 references"),
        ({"predictions": [], "references": []}, "nothing to score"),
        ({"predictions": ["a"]}, "references are missing"),
        ({"references": ["a"]}, "predictions are missing"),
        ({}, "nothing to score"),
        ({"predictions": [["a"], []], "references": ["a", "b"]}, "0 or 1 predictions"),
        ({"predictions": ["a"], "references": [[]]}, "no reference"),
    ],
)
def test_input_that_does_not_fit_is_refused_not_cut(arguments, what):
    with pytest.raises(InputError, match=what) as caught:
        ExactMatch().compute(**arguments)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_counts_of_texts_are_checked():
    metric = ExactMatch()
    with pytest.raises(InputError, match="2 examples, references for 1"):
        metric.scores_from_texts([["a"], ["b"]], [["a"]])
    with pytest.raises(InputError, match="1 or 2 predictions"):
        metric.scores_from_texts([["a"], ["b", "c"]], [["a"], ["b"]])
    with pytest.raises(InputError, match="nothing to score"):
        metric.scores_from_texts([], [])


@pytest.mark.parametrize(
    "facts, example, what",
    [
        ({"label_logp": np.zeros(2)}, np.zeros(3), "shape"),
        ({}, np.zeros(2), "missing"),
        ({"label_logp": np.zeros(0)}, np.zeros(0), "nothing to score"),
        ({"label_logp": np.zeros(1)}, np.array([1]), "1 examples"),
        ({"label_logp": np.zeros(1)}, np.array([-1]), "1 examples"),
    ],
)
def test_facts_that_do_not_fit_are_refused(facts, example, what):
    with pytest.raises(InputError, match=what):
        Perplexity().scores_from_tokens(facts, example, 1)


def test_a_metric_against_the_teacher_says_that_it_needs_one():
    with pytest.raises(InputError, match="missing") as caught:
        KLToTeacher().scores_from_tokens({}, np.zeros(1), 1)
    assert caught.value.fix == "give --teacher"


def test_a_fact_that_is_not_a_number_stops_with_exit_7():
    with pytest.raises(NumericsError, match="token 1") as caught:
        Perplexity().scores_from_tokens({"label_logp": np.array([0.0, np.nan])}, np.zeros(2), 1)
    assert caught.value.exit_code == 7


def test_infinity_is_an_answer():
    (ppl, nll) = Perplexity().scores_from_tokens({"label_logp": np.array([-np.inf])}, np.zeros(1), 1)
    assert ppl.value == nll.value == np.inf


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(InputError, match='no option "bins"'):
        RougeL(bins=3)


def test_a_guest_of_five_lines_works():
    class Shout(TextMetric):
        """Share of answers in capitals."""

        name = "shout"
        description = "share of answers in capitals"
        scores: ClassVar = {"shout": "lower"}

        def measure(self, predictions, references):
            counts = [(sum(text.isupper() for text in answers), len(answers)) for answers in predictions]
            return [Score("shout", np.array(counts, dtype=float), ratio(100.0), "lower")]

    assert issubclass(Shout, Metric)
    assert Shout().compute(predictions=["A", "b"], references=["", ""]) == {"shout": 50.0}
    assert Shout().signature == "shout"


def test_a_score_that_is_not_a_number_is_never_returned():
    class Broken(TextMetric):
        """Nothing over nothing."""

        name, description, scores = "broken", "nothing over nothing", {"broken": "lower"}

        def measure(self, predictions, references):
            return [Score("broken", np.zeros((1, 2)), ratio(), "lower")]

    with pytest.raises(NumericsError, match="broken is not a number"):
        Broken().compute(predictions=["a"], references=["a"])
