import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from kdcli.metrics.rouge import Rouge1, Rouge2, common_ngrams

WORDS = ["running", "runs", "the", "The", "a", "cats'", "jumped-over", "42", "U.S.", "été", "organised", ""]


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.choice([0, 1, 2, 9, 30]))) for _ in range(count)]


@pytest.mark.parametrize("metric", [Rouge1(), Rouge2()])
def test_every_row_equals_rouge_score_to_the_last_bit(metric):
    predictions, references = texts(600, 0), list(zip(texts(600, 1), texts(600, 2), strict=True))
    scorer = RougeScorer([metric.name], use_stemmer=True)
    theirs = [
        scorer.score_multi(list(valid), answer)[metric.name].fmeasure
        for answer, valid in zip(predictions, references, strict=True)
    ]
    ours = metric.values([[text] for text in predictions], [list(valid) for valid in references])[:, 0].tolist()
    assert ours == theirs
    assert len(set(ours)) > 50


def test_a_repeated_word_counts_as_often_as_both_have_it():
    assert common_ngrams([1, 1, 1], [1, 1, 2], 1) == (2, 3, 3)
    assert common_ngrams([1, 2, 1, 2], [1, 2], 2) == (1, 3, 1)


def test_one_word_has_no_pair():
    assert Rouge2().compute(predictions=["word"], references=["word"]) == {"rouge2": 0.0}
    assert Rouge1().compute(predictions=["word"], references=["word"]) == {"rouge1": 100.0}


def test_text_its_tokenizer_drops_is_noted_under_its_own_name():
    (score,) = Rouge2().scores_from_texts([["你好"]], [["你好"]])
    assert score.notes[0].startswith("rouge2: ")
