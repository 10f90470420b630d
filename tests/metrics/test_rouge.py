import random
import re

import pytest
from nltk.stem.porter import PorterStemmer
from torchmetrics.functional.text.rouge import rouge_score

from kdcli.metrics.rouge import RougeL, dropped_share, rouge_l

VOCABULARY = [
    "running",
    "runs",
    "ran",
    "the",
    "The",
    "a",
    "cat",
    "cats'",
    "jumped-over",
    "jumps",
    "42",
    "3.5",
    "U.S.",
    "easily",
    "organisation",
    "organised",
    "x",
]


def longest_common_subsequence(left: list[str], right: list[str]) -> int:
    """By definition: drop one last word or match both; memory only over one row."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def reference_rouge(prediction: str, reference: str) -> float:
    stem = PorterStemmer().stem
    words = [
        [stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]
        for text in (prediction, reference)
    ]
    common = longest_common_subsequence(*words)
    if common == 0:
        return 0.0
    precision, recall = common / len(words[0]), common / len(words[1])
    return 2 * precision * recall / (precision + recall)


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=draw.randint(0, 25))) for _ in range(count)]


def test_it_equals_an_independent_table_on_random_pairs():
    predictions, references = sentences(400, 0), sentences(400, 1)
    (score,) = RougeL().scores_from_texts([[text] for text in predictions], [[text] for text in references])
    for ours, prediction, reference in zip(score.per_example, predictions, references, strict=True):
        assert ours == pytest.approx(100 * reference_rouge(prediction, reference), abs=1e-12)
    assert 10 < score.value < 90


def test_it_equals_torchmetrics():
    predictions, references = sentences(40, 2), sentences(40, 3)
    theirs = rouge_score(predictions, references, use_stemmer=True, rouge_keys="rougeL")["rougeL_fmeasure"].item()
    ours = RougeL().compute(predictions=predictions, references=references)["rougeL"]
    assert ours == pytest.approx(100 * theirs, abs=1e-4)


def test_the_best_reference_counts_and_adding_one_never_lowers_it():
    predictions, references = sentences(60, 4), sentences(60, 5)
    for prediction in predictions:
        best = 0.0
        for count in range(1, 6):
            value = rouge_l(prediction, references[:count])
            assert value == pytest.approx(max(reference_rouge(prediction, text) for text in references[:count]))
            assert value >= best
            best = value


def test_the_number_is_the_plain_mean_over_seeds_and_examples():
    predictions = [["a b", "c d"], ["a", "b"]]
    value = RougeL().compute(predictions=predictions, references=["a b", "b"])["rougeL"]
    assert value == 50.0


def test_identical_disjoint_empty_case_and_punctuation():
    assert rouge_l("The cat.", ["the, CAT"]) == 1.0
    assert rouge_l("a b c", ["d e f"]) == 0.0
    assert rouge_l("", [""]) == 0.0
    assert rouge_l("word", [""]) == 0.0


def test_f_is_symmetric():
    for left, right in zip(sentences(50, 6), sentences(50, 7), strict=True):
        assert rouge_l(left, [right]) == pytest.approx(rouge_l(right, [left]), abs=1e-15)


def test_text_its_tokenizer_drops_is_noted():
    (score,) = RougeL().scores_from_texts([["你好"]], [["你好"]])
    assert score.value == 0.0
    assert "drops 100%" in score.notes[0]
    (score,) = RougeL().scores_from_texts([["naive cafe"]], [["a naïve word among many plain ones"]])
    assert score.notes == ()


def test_the_share_of_dropped_letters_is_counted_by_letter():
    assert dropped_share(["abc", "éé!  "]) == pytest.approx(2 / 5)
    assert dropped_share(["...", ""]) == 0.0


def test_the_note_starts_above_five_percent():
    at, above = "a" * 19 + "é", "a" * 18 + "é"
    assert RougeL().scores_from_texts([["a"]], [[at]])[0].notes == ()
    assert RougeL().scores_from_texts([["a"]], [[above]])[0].notes != ()


def test_the_signature_names_library_and_protocol():
    assert RougeL().signature == "rougeL|lib:rouge-score-0.1.2|stem:yes|refs:max|agg:mean|x100"
