import random
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text.rouge import rouge_score

from kdcli.errors import NumericsError, UsageError
from kdcli.metrics import rouge
from kdcli.metrics.rouge import RougeL, reference_f_measure

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
    assert score.per_example is not None
    for ours, prediction, reference in zip(score.per_example, predictions, references, strict=True):
        assert ours == pytest.approx(100 * reference_rouge(prediction, reference), abs=1e-12)
    assert 10 < score.value < 90


def rouge_l(prediction: str, references: list[str]) -> float:
    return float(RougeL().values([[prediction]], [references])[0, 0])


def computed(predictions, references) -> float:
    found = RougeL().compute(predictions=predictions, references=references)
    assert found is not None
    return found["rougeL"]


WORDS = [
    *VOCABULARY,
    "été",
    "你好",
    "İstanbul",
    "\u212aelvin",
    "ﬁne",
    "½",
    "x²",
    "١٢",
    "\u2028",
    "skies",
    "dying",
    "--",
    "",
]


def messy(draw: random.Random) -> str:
    return draw.choice([" ", "  ", "\n", "-"]).join(draw.choices(WORDS, k=draw.choice([0, 1, 2, 8, 40])))


@pytest.mark.parametrize("tokenizer, stemmer", [("words", "porter"), ("words", "none"), ("char", "porter")])
def test_every_row_equals_rouge_score_to_the_last_bit(tokenizer, stemmer):
    draw = random.Random(8)
    predictions = [[messy(draw)] for _ in range(700)]
    references = [[messy(draw) for _ in range(draw.randint(1, 3))] for _ in range(700)]
    values = RougeL(rouge_tokenizer=tokenizer, rouge_stemmer=stemmer).values(predictions, references)[:, 0].tolist()
    theirs = [
        reference_f_measure("rougeL", answer, valid, tokenizer=tokenizer, stemmer=stemmer)
        for (answer,), valid in zip(predictions, references, strict=True)
    ]
    assert values == theirs
    assert len(set(values)) > 100


def written() -> list[str]:
    """Real English with its punctuation: the words of this project's documentation."""
    pages = sorted((Path(__file__).parents[2] / "docs").rglob("*.md"))
    return " ".join(page.read_text(encoding="utf-8") for page in pages).split(" ")


def test_every_pair_of_written_texts_equals_rouge_score_to_the_last_bit():
    """Each passage against one that overlaps it, one that follows it and one from elsewhere."""
    words, draw = written(), random.Random(9)
    starts = draw.sample(range(len(words) - 120), 500)
    predictions = [[" ".join(words[start : start + draw.randint(0, 40)])] for start in starts]
    shifts = [[start + draw.randint(0, 20), start + 40, draw.choice(starts)] for start in starts]
    references = [[" ".join(words[at : at + draw.randint(0, 40)]) for at in several] for several in shifts]
    values = RougeL().values(predictions, references)[:, 0].tolist()
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    theirs = [
        max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in several)
        for (answer,), several in zip(predictions, references, strict=True)
    ]
    assert values == theirs
    assert len(set(values)) > 200


@given(st.text(max_size=60), st.lists(st.text(max_size=60), min_size=1, max_size=3))
def test_any_text_equals_rouge_score_to_the_last_bit(prediction, references):
    assert rouge_l(prediction, references) == reference_f_measure("rougeL", prediction, references)


def test_another_rouge_score_than_the_one_named_is_noticed(monkeypatch):
    monkeypatch.setattr(rouge, "reference_f_measure", lambda *_, **__: 0.25)
    with pytest.raises(NumericsError, match=r"example 0: 1.0, but the installed rouge-score says 0.25") as caught:
        RougeL().compute(predictions=["a"], references=["a"])
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("option", [{"rouge_tokenizer": "letters"}, {"rouge_stemmer": "snowball"}])
def test_an_unknown_tokenizer_or_stemmer_is_one_line(option):
    with pytest.raises(UsageError, match="use ") as caught:
        RougeL(**option).compute(predictions=["a"], references=["a"])
    assert caught.value.exit_code == 2


def test_characters_of_any_script_count_where_asked():
    metric = RougeL(rouge_tokenizer="char")
    (score,) = metric.scores_from_texts([["你好吗"], ["مرحبا"]], [["你好"], ["مرحبا"]])
    assert score.per_example is not None
    assert score.per_example.tolist() == pytest.approx([80.0, 100.0])
    assert score.notes == ()


def test_without_stems_forms_of_a_word_differ():
    assert RougeL().compute(predictions=["running"], references=["runs"]) == {"rougeL": 100.0}
    assert RougeL(rouge_stemmer="none").compute(predictions=["running"], references=["runs"]) == {"rougeL": 0.0}


@pytest.mark.parametrize("prediction, references", [("", ["a b"]), ("a", [""]), ("", [""]), ("x", ["y", "z"])])
def test_empty_and_wrong_answers_have_an_honest_zero(prediction, references):
    (score,) = RougeL().scores_from_texts([[prediction]] * 3, [references] * 3)
    assert score.value == 0.0


def test_it_equals_torchmetrics():
    predictions, references = sentences(40, 2), sentences(40, 3)
    theirs = rouge_score(predictions, references, use_stemmer=True, rouge_keys="rougeL")["rougeL_fmeasure"].item()
    ours = computed(predictions, references)
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
    value = computed(predictions, ["a b", "b"])
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
    assert "--rouge-tokenizer char" in score.notes[0]
    (score,) = RougeL().scores_from_texts([["naive cafe"]], [["a naïve word among many plain ones"]])
    assert score.notes == ()


def test_the_note_starts_above_five_percent():
    at, above = "a" * 19 + "é", "a" * 18 + "é"
    assert RougeL().scores_from_texts([["a"]], [[at]])[0].notes == ()
    assert RougeL().scores_from_texts([["a"]], [[above]])[0].notes != ()


def test_the_signature_names_library_and_protocol():
    assert RougeL(rouge_tokenizer="char").signature == (
        f"rougeL|lib:rouge-score-0.1.2|lib:nltk-{version('nltk')}"
        "|rouge_tokenizer:char|rouge_stemmer:porter|refs:max|agg:mean|x100"
    )
