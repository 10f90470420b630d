import random
import string

import pytest

from kdcli.metrics.qa import ExactMatch, exact_match, normalise


def reference_normalise(text: str) -> str:
    """The SQuAD definition without its removal of articles, letter by letter."""
    kept, space = [], True
    for letter in text.lower():
        if letter in string.punctuation:
            continue
        if letter.isspace():
            space = True
            continue
        if space and kept:
            kept.append(" ")
        space = False
        kept.append(letter)
    return "".join(kept)


def test_normalisation_equals_the_definition_on_random_text():
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("aAbBÉ .,!'\"-_$\n\t 19", k=draw.randint(0, 30)))
        assert normalise(text) == reference_normalise(text)


@pytest.mark.parametrize(
    "prediction, references, expected",
    [
        ("The  End!", ["the end"], True),
        ("the end", ["the", "end", "THE END."], True),
        ("theend", ["the end"], False),
        ("an end", ["end"], False),
        ("", ["..."], True),
        ("4", ["5"], False),
    ],
)
def test_cases(prediction, references, expected):
    assert exact_match(prediction, references) is expected


def test_the_value_is_the_share_over_seeds_and_examples_in_percent():
    (score,) = ExactMatch().scores_from_texts(
        [["a", "b"], ["c", "c"], ["x", "y"], ["z", "z"]], [["a"], ["c"], ["q"], ["r"]]
    )
    assert score.value == pytest.approx(37.5)
    assert score.per_example.tolist() == [50.0, 100.0, 0.0, 0.0]
