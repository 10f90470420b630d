import random

import pytest

from kdcli.metrics.diversity import Distinct, distinct


def test_the_published_example():
    assert distinct([["a", "b", "c", "d", "a", "b", "c", "d"]], 4) == 80.0


def test_it_equals_the_definition_on_random_sets():
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcde", k=draw.randint(0, 9))) for _ in range(50)]
    scores = Distinct().compute(predictions=texts, references=[""] * 50)
    for n in (1, 2, 3, 4):
        seen, count = set(), 0
        for text in texts:
            words = text.split(" ") if text else []
            for start in range(len(words)):
                gram = words[start : start + n]
                if len(gram) == n:
                    seen.add(" ".join(gram))
                    count += 1
        assert scores[f"distinct_{n}"] == pytest.approx(100 * len(seen) / count)


def test_it_is_taken_over_the_whole_set_of_one_seed_and_averaged_over_seeds():
    scores = Distinct().scores_from_texts([["a a", "a b"], ["a a", "c d"]], [[], []])
    assert scores[0].value == pytest.approx((25.0 + 100.0) / 2)
    assert scores[0].sums is None


def test_answers_too_short_for_an_n_gram_count_as_none():
    assert Distinct().compute(predictions=["a"], references=[""])["distinct_4"] == 0.0
