import random
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score import tokenize

from kdcli.metrics.rouge import RougeTokens, characters, dropped_share


def same_tokens(numbers: list[int], tokens: list[str]) -> bool:
    """Whether numbers are equal exactly where tokens are."""
    return len(numbers) == len(tokens) and len(set(zip(numbers, tokens, strict=True))) == len(set(numbers)) == len(
        set(tokens)
    )


@given(st.text(max_size=80))
def test_words_are_rouge_scores_own(text):
    assert same_tokens(RougeTokens()(text), tokenize.tokenize(text, PorterStemmer()))
    assert same_tokens(RougeTokens(stemmer="none")(text), tokenize.tokenize(text, None))


def test_every_made_up_word_is_stemmed_as_rouge_score_does():
    draw, tokens = random.Random(0), RougeTokens()
    endings = [
        "s",
        "es",
        "ed",
        "ing",
        "ly",
        "ation",
        "ational",
        "ness",
        "iness",
        "ies",
        "sses",
        "ement",
        "y",
        "eed",
        "",
    ]
    words = ["".join(draw.choices("aeioubcdlnrst", k=draw.randint(1, 5))) + draw.choice(endings) for _ in range(3000)]
    text = " ".join([*words, *endings])
    assert same_tokens(tokens(text), tokenize.tokenize(text, PorterStemmer()))


def test_a_word_gets_the_same_number_in_every_text():
    tokens = RougeTokens()
    assert tokens("cats run") == tokens("cat running")
    assert tokens("cat")[0] == tokens("a cat")[1]


def test_characters_are_letters_marks_and_digits_of_any_script():
    assert characters("Été, 你好！ ٤ नि") == ["é", "t", "é", "你", "好", "٤", "न", "ि"]
    assert characters("e\u0301") == characters("é")
    assert characters(" .,!?\n") == []


@given(st.text(max_size=60))
def test_characters_hold_every_letter_of_the_text(text):
    found, whole = characters(text), unicodedata.normalize("NFKC", text).lower()
    assert [one for one in found if one.isalnum()] == [one for one in whole if one.isalnum()]
    assert not any(one.isspace() or one in string.punctuation for one in found)
    assert same_tokens(RougeTokens("char")(text), characters(text.lower()))


def test_the_share_of_dropped_letters_is_counted_by_letter():
    assert dropped_share(["abc", "éé!  "]) == pytest.approx(2 / 5)
    assert dropped_share(["...", ""]) == 0.0
    assert dropped_share(["你好", "مرحبا"]) == 1.0
