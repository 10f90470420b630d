import random

import pytest

from kdcli.metrics.diversity import Repetition, repetition


def test_it_equals_counting_what_was_seen_before():
    draw = random.Random(0)
    for _ in range(300):
        words = draw.choices("abc", k=draw.randint(0, 15))
        seen, again, count = [], 0, 0
        for start in range(len(words) - 3):
            gram = words[start : start + 4]
            again, count = again + (gram in seen), count + 1
            seen.append(gram)
        assert repetition(" ".join(words)) == pytest.approx(again / count if count else 0.0, abs=1e-15)


def test_a_loop_tends_to_all_and_a_short_answer_repeats_nothing():
    assert repetition("no " * 200) == pytest.approx(1 - 1 / 197)
    assert repetition("no no no") == repetition("") == 0.0


def test_it_looks_at_each_answer_alone_and_needs_no_reference():
    (score,) = Repetition().scores_from_texts([["a b c d", "a b c d"], ["a a a a a", "x"]], [[], []])
    assert score.per_example.tolist() == [0.0, 25.0]
    assert score.value == 12.5
    assert score.better == "lower"
