"""What Rouge takes a text for: rouge-score's stemmed words, or characters of any script."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

from kdcli.errors import UsageError
from kdcli.metrics import porter

TOKENIZERS = ("words", "char")
STEMMERS = ("porter", "none")

_WORD = re.compile("[a-z0-9]+")
_VALID = re.compile("^[a-z0-9]+$")
_LONGEST_UNSTEMMED = 3


class RougeTokens:
    """Turns texts into numbers, equal ones for equal tokens; remembers every word it has stemmed.

    ``words``: lower case, runs of a-z and 0-9, words of more than three letters stemmed, as rouge-score's
    default tokenizer does. ``char``: lower case after NFKC normalisation, every letter, mark and digit of any script a
    token of its own; nothing is stemmed.

    Args:
        tokenizer: "words" or "char".
        stemmer: "porter" or "none".

    Raises:
        UsageError: another tokenizer or stemmer.

    >>> numbers = RougeTokens()
    >>> numbers("The cats sat"), numbers("a CAT... running"), RougeTokens("char")("你好。")
    ([0, 1, 2], [3, 1, 4], [0, 1])
    """

    def __init__(self, tokenizer: str = "words", stemmer: str = "porter") -> None:
        _check("rouge_tokenizer", tokenizer, TOKENIZERS)
        _check("rouge_stemmer", stemmer, STEMMERS)
        self._numbers = _Numbers(porter.stem if stemmer == "porter" else None)
        self._split = _WORD.findall if tokenizer == "words" else characters

    def __call__(self, text: str) -> list[int]:
        """Return the number of each token of a text."""
        numbers = self._numbers
        return [number for token in self._split(text.lower()) if (number := numbers[token]) >= 0]


class _Numbers(dict):
    """Token -> number of its stem, looked up once per token; -1 for a stem that rouge-score drops."""

    def __init__(self, stem: Callable[[str], str] | None) -> None:
        super().__init__()
        self._stem = stem
        self._stems: dict[str, int] = {}

    def __missing__(self, token: str) -> int:
        self[token] = number = self._number(token)
        return number

    def _number(self, token: str) -> int:
        if self._stem is not None and len(token) > _LONGEST_UNSTEMMED:
            token = self._stem(token)
            if not _VALID.match(token):
                return -1
        return self._stems.setdefault(token, len(self._stems))


def characters(text: str) -> list[str]:
    """Return the letters, marks and digits of a text after NFKC normalisation, in lower case.

    >>> characters("ＡＢ, 你好 42")
    ['a', 'b', '你', '好', '4', '2']
    """
    return [letter for letter in unicodedata.normalize("NFKC", text).lower() if _is_written(letter)]


@lru_cache(maxsize=65536)
def _is_written(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN"


def dropped_share(texts: Iterable[str]) -> float:
    """Return which share of the letters and digits the tokenizer ``words`` drops.

    >>> dropped_share(["été"])
    0.6666666666666666
    """
    kept = dropped = 0
    for text in texts:
        if text.isascii():
            kept += sum(map(str.isalnum, text))
            continue
        letters = [letter for letter in text.lower() if letter.isalnum()]
        plain = sum(map(str.isascii, letters))
        kept, dropped = kept + plain, dropped + len(letters) - plain
    return dropped / max(kept + dropped, 1)


def _check(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UsageError("METRIC-02", f'no {name} "{given}"', where="metric rouge", fix=f"use {' or '.join(known)}")
