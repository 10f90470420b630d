import random

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from kdcli.metrics.diversity import SelfBleu, self_bleu


def theirs(texts: list[list[str]]) -> float:
    """Each text against all others, pair by pair."""
    smooth = SmoothingFunction().method1
    return sum(
        sentence_bleu(texts[:i] + texts[i + 1 :], text, smoothing_function=smooth) for i, text in enumerate(texts)
    ) / len(texts)


@pytest.mark.parametrize("letters", ["ab", "abcdefgh"])
def test_it_equals_nltk_on_random_sets(letters):
    draw = random.Random(0)
    for _ in range(150):
        texts = [draw.choices(letters, k=draw.randint(0, 12)) for _ in range(draw.randint(2, 7))]
        assert self_bleu(texts) == pytest.approx(theirs(texts), abs=1e-12)


def test_the_same_answer_everywhere_is_one_and_nothing_in_common_is_zero():
    assert self_bleu([["a", "b", "c", "d", "e"]] * 5) == pytest.approx(1.0)
    assert self_bleu([["a", "b"], ["c", "d"]]) == 0.0
    assert self_bleu([["a"]]) == 0.0
    assert self_bleu([[], []]) == 0.0


def test_it_is_taken_over_each_seed_and_averaged():
    answers = [["a b c d", "a b c d"], ["a b c d", "w x y z"]]
    (score,) = SelfBleu().scores_from_texts(answers, [[], []])
    assert score.value == pytest.approx((100.0 + 0.0) / 2)
    assert (score.sums, score.better) == (None, "lower")
