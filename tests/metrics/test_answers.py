"""Metrics of given choices: accuracy, calibration, the Brier score's parts, and temperature scaling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_f1_score,
)

from kdcli.errors import InputError, NumericsError
from kdcli.evaluation.scoring import MetricSet, forms
from kdcli.metrics.classification import AnswerBins, AnswerBrierParts, Answers, AnswerTemperature, ChoiceTable, MacroF1
from kdcli.statistics import over_examples

LABELS = ("red", "green", "blue", "grey")


def table(rows=120, seed=0, scale=2.0, **changes) -> ChoiceTable:
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(rows, 4)) * scale - 5.0
    right = np.array([draw.choice(4, p=one) for one in softmax(scores / 2.0, axis=1)])
    return replace(ChoiceTable(scores, draw.integers(1, 4, (rows, 4)), right, LABELS), **changes)


def values(metric, of) -> dict[str, float]:
    return {score.name: score.value for score in metric.scores_from_choices(of)}


def test_they_equal_torchmetrics_and_the_plain_formulas():
    measured = table(500)
    probability, right = torch.tensor(measured.scores).softmax(1), torch.tensor(measured.right)
    found = values(Answers(bins=15), measured)
    ece, mce = (multiclass_calibration_error(probability, right, 4, n_bins=15, norm=norm) for norm in ("l1", "max"))
    assert found["answer_ece"] == pytest.approx(ece.item(), abs=1e-6)
    assert found["answer_mce"] == pytest.approx(mce.item(), abs=1e-6)
    assert found["accuracy"] == pytest.approx(100 * multiclass_accuracy(probability, right, 4, average="micro").item())
    error = probability.numpy() - np.eye(4)[measured.right]
    assert found["answer_brier"] == pytest.approx((error**2).sum(1).mean(), abs=1e-12)
    assert found["answer_nll"] == pytest.approx(torch.nn.functional.nll_loss(probability.log(), right).item(), abs=1e-9)


def test_four_rows_by_hand():
    """Two rows of confidence 0.72, one of them right: a gap of 0.22; then 0.55 and 0.05, for one row each."""
    probability = np.array([[0.72, 0.18, 0.10], [0.72, 0.18, 0.10], [0.45, 0.35, 0.20], [0.95, 0.04, 0.01]])
    right = np.array([0, 1, 0, 0])
    unnormalised = np.log(probability) - np.array([[5.0], [1.0], [9.0], [0.0]])
    found = values(Answers(), ChoiceTable(unnormalised, np.ones((4, 3), dtype=np.int64), right, ("a", "b", "c")))
    assert found == pytest.approx(
        {
            "accuracy": 75.0,
            "answer_ece": (2 * 0.22 + 0.55 + 0.05) / 4,
            "answer_mce": 0.55,
            "answer_brier": (0.1208 + 1.2008 + 0.465 + 0.0042) / 4,
            "answer_nll": -np.log(0.72 * 0.18 * 0.45 * 0.95) / 4,
        },
        abs=1e-12,
    )


def test_only_differences_between_the_choices_of_a_row_count():
    measured = table()
    shifted = replace(measured, scores=measured.scores + np.arange(120)[:, None])
    for metric in (Answers(), AnswerBins(), AnswerBrierParts()):
        assert values(metric, shifted) == pytest.approx(values(metric, measured), abs=1e-9)


def test_the_mean_over_tokens_divides_by_each_choices_length():
    measured = table()
    divided = replace(measured, scores=measured.scores / measured.tokens)
    assert values(Answers(choice_score="mean"), measured) == values(Answers(), divided)
    assert values(Answers(choice_score="mean"), measured) != values(Answers(), measured)
    assert "choice_score:mean" in Answers(choice_score="mean").signature


def test_choices_a_row_lacks_have_no_weight():
    measured = table()
    more = np.concatenate([measured.scores, np.full((120, 2), -np.inf)], axis=1)
    wider = replace(measured, scores=more, tokens=np.ones(more.shape, dtype=np.int64), labels=())
    assert values(Answers(), wider) == values(Answers(), measured)
    classwise = values(AnswerBins(), wider)["answer_ece_classwise"]
    assert classwise == pytest.approx(values(AnswerBins(), measured)["answer_ece_classwise"] * 4 / 6)
    (note,) = next(iter(AnswerBins().scores_from_choices(wider))).notes
    assert "place in the row" in note


def test_the_parts_of_the_brier_score_add_up_to_the_one_of_the_answers():
    measured = table(300)
    parts = {name.removeprefix("answer_brier_"): value for name, value in values(AnswerBrierParts(), measured).items()}
    whole = (
        parts["reliability"] - parts["resolution"] + parts["uncertainty"]
        + parts["within_variance"] - parts["within_covariance"]
    )  # fmt: skip
    assert whole == pytest.approx(values(Answers(), measured)["answer_brier"], abs=1e-12)


def test_the_adaptive_error_is_the_mean_over_classes_of_equal_mass_errors():
    measured, expected = table(90), []
    for one, probability in enumerate(softmax(measured.scores, axis=1).T):
        order = np.argsort(probability)
        gaps = ((measured.right == one) - probability)[order].reshape(10, 9).sum(1)
        expected.append(np.abs(gaps).sum() / 90)
    found = {score.name: score for score in AnswerBins().scores_from_choices(measured)}
    assert found["answer_ace"].value == pytest.approx(np.mean(expected), abs=1e-12)
    estimate = over_examples(found["answer_ace"])
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.mean < estimate.high


def test_one_class_all_wrong_and_chance():
    sure = np.log(np.array([[0.9, 0.1]] * 4))
    one = ChoiceTable(sure, np.ones((4, 2), dtype=np.int64), np.zeros(4, dtype=np.int64), ("a", "b"))
    found = values(Answers(), one)
    assert (found["accuracy"], found["answer_ece"]) == (100.0, pytest.approx(0.1))
    ece = next(score for score in Answers().scores_from_choices(one) if score.name == "answer_ece")
    assert "the same in every row" in ece.notes[0]
    assert values(AnswerBrierParts(), one)["answer_brier_uncertainty"] == 0.0
    wrong = replace(one, right=np.ones(4, dtype=np.int64))
    assert values(Answers(), wrong)["accuracy"] == 0.0
    assert values(Answers(), wrong)["answer_mce"] == pytest.approx(0.9)
    chance = replace(one, scores=np.zeros((4, 2)), right=np.array([0, 1, 0, 1]))
    assert values(Answers(), chance)["answer_ece"] == 0.0


def test_scaled_values_stand_beside_the_raw_ones():
    development, measured = table(4000, seed=1), table(2000, seed=2)
    found = values(AnswerTemperature(), replace(measured, development=development))
    assert found["answer_temperature"] == pytest.approx(2.0, rel=0.1)
    raw = values(Answers(), measured)
    assert {name: found[name] for name in ("answer_ece", "answer_brier", "answer_nll")} == {
        name: raw[name] for name in ("answer_ece", "answer_brier", "answer_nll")
    }
    scaled = values(Answers(), replace(measured, scores=measured.scores / found["answer_temperature"]))
    for name in ("answer_ece", "answer_brier", "answer_nll"):
        assert found[f"{name}_scaled"] == pytest.approx(scaled[name], abs=1e-12)
        assert found[f"{name}_scaled"] < found[name]
    assert scaled["accuracy"] == raw["accuracy"]


def test_answers_that_are_all_wrong_leave_a_temperature_at_its_limit_with_a_note():
    wrong = replace(table(50), right=np.argmin(table(50).scores, axis=1))
    scores = AnswerTemperature().scores_from_choices(replace(wrong, development=wrong))
    found = {score.name: score for score in scores}
    assert found["answer_temperature"].value > 990
    assert "point away" in found["answer_temperature"].notes[0]
    assert found["answer_nll_scaled"].value == pytest.approx(np.log(wrong.scores.shape[1]), abs=0.02)


def test_the_temperature_is_fitted_on_the_same_kind_of_score():
    development = table(500, seed=1)
    divided = replace(development, scores=development.scores / development.tokens)
    mean = AnswerTemperature(choice_score="mean")
    found = values(mean, replace(table(), development=development))["answer_temperature"]
    plain = values(AnswerTemperature(), replace(table(), development=divided))["answer_temperature"]
    assert found == plain


def test_temperature_needs_development_rows():
    with pytest.raises(InputError, match="development") as caught:
        AnswerTemperature().scores_from_choices(table())
    assert caught.value.exit_code == 3


def test_both_diagrams_are_drawn_from_the_same_bins():
    (curve,) = Answers().curves(table())
    assert curve.name == "reliability_answers"
    assert [sum(one.count or ()) for one in curve.series] == [120.0, 120.0]
    (scaled,) = AnswerTemperature().curves(replace(table(), development=table(seed=1)))
    assert scaled.series[0] == replace(curve.series[0], label="as it is")


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_numbers_that_are_none_are_one_line(odd):
    scores = table().scores.copy()
    scores[7, 2] = odd
    with pytest.raises(NumericsError, match="row 7") as caught:
        Answers().scores_from_choices(table(scores=scores))
    assert caught.value.exit_code == 7
    with pytest.raises(NumericsError, match="row 7"):
        AnswerTemperature().scores_from_choices(table(development=table(scores=scores)))


def test_a_row_of_impossible_choices_is_one_line():
    with pytest.raises(NumericsError, match="row 0"):
        Answers().scores_from_choices(table(scores=np.full((120, 4), -np.inf)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="not among"):
        Answers().scores_from_choices(table(right=np.full(120, 4)))
    with pytest.raises(InputError, match="shapes"):
        Answers().scores_from_choices(table(right=np.zeros(3, dtype=np.int64)))
    empty = ChoiceTable(np.zeros((0, 2)), np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64))
    with pytest.raises(InputError, match="no rows"):
        Answers().scores_from_choices(empty)


def labelled(right, said, classes=3):
    """A table in which the model says one class of each row for sure."""
    scores = np.where(np.eye(classes)[np.array(said)] > 0, 0.0, -9.0)
    ones = np.ones(scores.shape, dtype=np.int64)
    return ChoiceTable(scores, ones, np.array(right), tuple("abc"[:classes]))


def test_macro_f1_and_kappa_by_hand():
    """Six rows: a is right 2 of 3 times, b 1 of 2, c 0 of 1; said are a 3, b 1, c 2."""
    found = values(MacroF1(), labelled([0, 0, 0, 1, 1, 2], [0, 0, 2, 1, 2, 0]))
    assert found["macro_f1"] == pytest.approx(100 * (4 / 6 + 2 / 3 + 0) / 3, abs=1e-12)
    chance = (3 * 3 + 2 * 1 + 1 * 2) / 36
    assert found["kappa"] == pytest.approx((0.5 - chance) / (1 - chance), abs=1e-12)


def test_macro_f1_and_kappa_equal_torchmetrics():
    measured = table(500)
    said, right = torch.tensor(measured.scores.argmax(1)), torch.tensor(measured.right)
    found = values(MacroF1(), measured)
    assert found["macro_f1"] == pytest.approx(
        100 * multiclass_f1_score(said, right, 4, average="macro").item(), abs=1e-4
    )
    assert found["kappa"] == pytest.approx(multiclass_cohen_kappa(said, right, 4).item(), abs=1e-6)


def test_a_class_that_no_row_has_and_no_model_says_does_not_count_and_one_class_has_no_kappa():
    assert values(MacroF1(), labelled([0, 1], [0, 1])) == {"macro_f1": 100.0, "kappa": 1.0}
    assert values(MacroF1(), labelled([0, 0], [0, 0])) == {"macro_f1": 100.0}
    assert values(MacroF1(), labelled([0, 1], [1, 0], 2)) == {"macro_f1": 0.0, "kappa": -1.0}


def test_a_comparison_can_put_every_score_of_classes_together_again_from_its_sums():
    assert {"macro_f1", "kappa"} <= set(forms(MetricSet((), (), (), (MacroF1(),))))
