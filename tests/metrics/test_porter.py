"""The stemmer is NLTK's, letter by letter."""

import itertools
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer

from kdcli.metrics import porter

THEIRS = PorterStemmer().stem
ENDINGS = ["", "s", "ed", "ing", "y", "e", "ll", "ies", "ied", "sses", "eed", "at", "bl", "iz", "tt", "logi", "alli"]
ENDINGS += ["allialli", *porter._STEP_2, *porter._STEP_3, *porter._STEP_4]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
texts = st.text(alphabet=st.sampled_from("aeiouybcdlstwxz9"), max_size=8)


def test_every_pair_of_endings_behind_every_kind_of_root():
    roots = ["", "b", "a", "y", "tr", "by", "yy", "oat", "ivy", "toy", "syz", "ab", "trouble", "hop", "fil", "1", "4a"]
    for root, first, second in itertools.product(roots, ENDINGS, ENDINGS):
        word = root + first + second
        assert porter.stem(word) == THEIRS(word), word


@settings(max_examples=300)
@given(texts, st.sampled_from(ENDINGS), st.sampled_from(ENDINGS))
def test_any_root(root, first, second):
    assert porter.stem(root + first + second) == THEIRS(root + first + second)


def test_every_word_of_two_letters_and_many_random_ones():
    draw = random.Random(0)
    words = ["".join(pair) for pair in itertools.product(LETTERS, repeat=2)]
    words += ["".join(draw.choices(LETTERS, k=draw.randint(3, 12))) for _ in range(5_000)]
    assert [porter.stem(word) for word in words] == [THEIRS(word) for word in words]


@pytest.mark.parametrize("word", [*sorted(PorterStemmer().pool), "", "a", "by", "yyyyyyyy", "y" * 2000])
@pytest.mark.usefixtures("deep")
def test_irregular_words_short_ones_and_long_runs(word):
    assert porter.stem(word) == THEIRS(word)


@pytest.fixture
def deep():
    """NLTK calls itself once a letter."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5_000)
    yield
    sys.setrecursionlimit(limit)
