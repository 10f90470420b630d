import numpy as np
import pytest

from kdcli.data.tokenize import Example, TokenDataset
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.answers import TextSamples
from kdcli.evaluation.scoring import with_reference_tokens
from kdcli.metrics.rouge import RougeL, RougeLByLength
from kdcli.statistics import over_examples

LENGTHS = [0, 5, 6, 10, 11, 400, 3, 12]
ANSWERS = [
    ["a b", "a"],
    ["a", "x"],
    ["a b", "a b"],
    ["b", "a"],
    ["x", "a b"],
    ["a b c", "x"],
    ["a b", "x"],
    ["a", "b c"],
]
REFERENCES = [["a b"]] * len(LENGTHS)


def by_bucket(**also):
    return {score.name: score for score in RougeLByLength().scores_from_texts(ANSWERS, REFERENCES, **also)}


def test_each_bucket_is_the_rouge_of_its_examples_alone():
    scores = by_bucket(reference_tokens=LENGTHS)
    for name, inside in (("rougeL_0_5", [0, 1, 6]), ("rougeL_6_10", [2, 3]), ("rougeL_11_inf", [4, 5, 7])):
        (alone,) = RougeL().scores_from_texts([ANSWERS[i] for i in inside], [REFERENCES[i] for i in inside])
        assert scores[name].value == alone.value
        assert over_examples(scores[name]) == over_examples(alone)
        assert scores[name].answers.shape == (len(LENGTHS), 2, 2)


def test_a_bucket_without_examples_is_left_out_and_said_so():
    scores = by_bucket(reference_tokens=[1] * len(LENGTHS))
    assert list(scores) == ["rougeL_0_5"]
    assert scores["rougeL_0_5"].notes == ("rougeL_by_length: no reference has [6, 10] or [11, ∞) tokens",)


def test_the_curve_has_the_scores_values_and_intervals():
    scores = by_bucket(reference_tokens=LENGTHS)
    (curve,) = RougeLByLength().curves(ANSWERS, REFERENCES, reference_tokens=LENGTHS)
    (line,) = curve.series
    estimates = [over_examples(score) for score in scores.values()]
    np.testing.assert_allclose(line.y, [one.mean for one in estimates], rtol=1e-12)
    np.testing.assert_allclose(line.low, [one.low for one in estimates], rtol=1e-9)
    np.testing.assert_allclose(line.high, [one.high for one in estimates], rtol=1e-9)
    assert line.count == (3.0, 2.0, 3.0)
    assert curve.ticks == ("[0, 5] n=3", "[6, 10] n=2", "[11, ∞) n=3")
    (short,) = RougeLByLength().curves(ANSWERS[:1], REFERENCES[:1], reference_tokens=[4])
    assert short.series[0].x == (0.0,)
    assert np.isnan(short.series[0].low[0])


def test_words_need_no_tokenizer_and_the_first_reference_says_the_length():
    metric = RougeLByLength(length_unit="words")
    references = [["one two three four five six", "one"], ["one", "one two three four five six"]]
    scores = metric.scores_from_texts([["one"], ["two"]], references)
    assert {score.name: score.value for score in scores} == pytest.approx({"rougeL_6_10": 100.0, "rougeL_0_5": 200 / 7})
    assert "length_unit:words" in metric.signature


def test_what_is_missing_or_does_not_fit_is_one_line():
    with pytest.raises(InputError, match='"reference_tokens" is not known') as caught:
        by_bucket()
    assert "length_unit=words" in caught.value.fix
    with pytest.raises(InputError, match='"reference_tokens" of 1 examples'):
        by_bucket(reference_tokens=[3])
    with pytest.raises(UsageError, match='no length_unit "pages"'):
        RougeLByLength(length_unit="pages")


def test_the_length_of_a_reference_leaves_its_end_token_out():
    """Three tokens and the end, three tokens that were cut, nothing but the end."""
    rows = ((1, 9, 5, 6, 7, 2), (1, 9, 5, 6, 7), (1, 9, 2))
    dataset = TokenDataset(tuple(Example(ids, 2, "", ("a",), "") for ids in rows))
    texts = TextSamples([["a"]] * 3, [["a"]] * 3, [""] * 3, [[True]] * 3)
    assert with_reference_tokens(texts, dataset, EndTokens((2,))).reference_tokens == [3, 3, 0]
