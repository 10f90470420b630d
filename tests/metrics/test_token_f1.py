import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from kdcli.metrics.qa import TokenF1, token_f1

WORDS = ["The", "a", "an", "cat", "cat.", "U.S.", "42", "--", "été", "theory", "Ana", "dog's"]


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


def theirs(prediction: str, references: list[str]) -> float:
    target = {"answers": {"answer_start": [0] * len(references), "text": references}, "id": "0"}
    return squad([{"prediction_text": prediction, "id": "0"}], [target])["f1"].item()


def test_it_equals_the_squad_script_as_torchmetrics_has_it():
    rows = zip(sentences(200, 0), sentences(200, 1), sentences(200, 2), strict=True)
    for prediction, *references in rows:
        if any(token_f1(text, ["the"]) == 1.0 for text in (prediction, *references)):
            continue  # a side without words: version 1.1 of the script scores 0, version 2.0 as we do
        assert 100 * token_f1(prediction, references) == pytest.approx(theirs(prediction, references), abs=1e-4)


@pytest.mark.parametrize(
    "prediction, references, expected",
    [
        ("The  cat!", ["a cat"], 1.0),
        ("cat cat dog", ["cat dog dog"], 2 / 3),
        ("cat", ["dog", "the cat sat"], 2 / 3),
        ("the", ["an"], 1.0),
        ("", ["cat"], 0.0),
        ("cat", [""], 0.0),
        ("", ["..."], 1.0),
        ("cat", ["dog"], 0.0),
        ("theory", ["ory"], 0.0),
    ],
)
def test_cases(prediction, references, expected):
    assert token_f1(prediction, references) == pytest.approx(expected, abs=1e-15)


@given(st.text(max_size=30), st.text(max_size=30))
def test_it_is_symmetric_and_between_0_and_1(one, other):
    assert token_f1(one, [other]) == token_f1(other, [one])
    assert 0.0 <= token_f1(one, [other]) <= 1.0
    assert token_f1(one, [one]) == 1.0


def test_the_value_is_the_mean_over_seeds_and_examples_in_percent():
    (score,) = TokenF1().scores_from_texts([["a b", "c"], ["x", "x"]], [["b"], ["x"]])
    assert score.per_example.tolist() == [50.0, 100.0]
    assert score.value == 75.0
